"""The Tickwheel client library."""

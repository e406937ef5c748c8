"""The Tickwheel server. docs/ARCHITECTURE.md has the map of its rooms; imports only go down its floors."""

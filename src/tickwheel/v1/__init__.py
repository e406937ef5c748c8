"""Generated from proto/tickwheel/v1 by `make gen`: the public API's messages and stubs."""

"""Generated from proto/tickwheel/internal/v1 by `make gen`."""

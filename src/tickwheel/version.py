"""The version, in one place for server, client and command line."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tickwheel")
except PackageNotFoundError:  # a checkout that was never installed
    VERSION = "0.0.0"

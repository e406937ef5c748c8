"""The version, in one place for server, client and command line."""

from importlib.metadata import PackageNotFoundError, version

try:
    _version = version("tickwheel")
except PackageNotFoundError:  # a checkout that was never installed
    _version = "0.0.0"

VERSION = _version

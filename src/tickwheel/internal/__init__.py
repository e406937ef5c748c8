"""What nodes and disks speak; no part of the API."""

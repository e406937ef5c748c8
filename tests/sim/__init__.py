"""Simulated devices: each implements a port of the server and fails as the real thing may."""

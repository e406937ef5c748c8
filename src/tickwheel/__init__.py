"""Tickwheel: schedule HTTP requests and fire them on time, and lose none when a machine dies.

Import what you need from the sub-packages: `tickwheel.client` to talk to a server, `tickwheel.server` to be one.
"""

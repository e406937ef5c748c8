"""The doors: gRPC and REST. They authenticate, validate and convert; they see a `Scheduler`, never the rooms below."""

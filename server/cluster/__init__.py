"""What makes several nodes one service: etcd says who is alive and who leads, peers carry the log."""

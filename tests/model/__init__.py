"""A model of the cluster's protocol for one shard: explored at random and exhaustively (docs/design/model.md)."""

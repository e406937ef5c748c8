"""Floor 3. The store: what each shard knows, in SQLite, a little behind the log and never ahead of it.

    shard_store   one shard: flush a change set, checkpoint, point reads, what is due     (synchronous)
    history       its ended executions, a file a day
    listing       lists and counts
    sqlite        connections, bulk statements, checkpoints
    threads       the port: three threads for all shards, and a twin without threads

Must never import: other rooms of floor 3 or higher.
"""

from tickwheel.server.query import Applied
from tickwheel.server.store.shard_store import Changes, ShardStore, StoreOptions
from tickwheel.server.store.threads import InlineStore, StorePort, StoreThreads

__all__ = [
    "Applied",
    "Changes",
    "InlineStore",
    "ShardStore",
    "StoreOptions",
    "StorePort",
    "StoreThreads",
]

package tickwheel.example;

import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import java.util.zip.CRC32;
import tickwheel.v1.ClusterServiceGrpc;
import tickwheel.v1.ClusterServiceOuterClass.GetClusterRequest;
import tickwheel.v1.ClusterServiceOuterClass.WatchClusterRequest;
import tickwheel.v1.JobServiceGrpc;

/**
 * The part to copy: a cluster of Tickwheel nodes as one service, for many threads.
 *
 * <p>It keeps the newest map of the cluster, knows which node leads a job's shard, and repeats a call on the next
 * address when a node does not answer. A repeat is the same request, {@code request_id} included, so it is safe however
 * often it is made.
 */
final class Cluster implements AutoCloseable {
  private static final long ATTEMPT_MS = 3_000; // for one node to answer
  private static final long CALL_MS = 60_000; // for a call with all its repeats
  private static final long PAUSE_MS = 50; // between two attempts
  private static final long WATCH_MS = 20_000; // then the watch is opened anew: a silent connection is noticed

  /** The job that a call is about. */
  record Key(String namespace, String job) {
    /** The shard of {@code namespaces/{namespace}/jobs/{job}}, as cluster_service.proto tells. */
    int shard(int shardCount) {
      var crc = new CRC32();
      crc.update((namespace + "/" + job).getBytes(StandardCharsets.UTF_8));
      return (int) (crc.getValue() % shardCount); // getValue is unsigned
    }
  }

  /** One node. */
  record Node(ManagedChannel channel) {
    JobServiceGrpc.JobServiceBlockingStub jobs() {
      return JobServiceGrpc.newBlockingStub(channel).withDeadlineAfter(ATTEMPT_MS, TimeUnit.MILLISECONDS);
    }

    ClusterServiceGrpc.ClusterServiceBlockingStub cluster(long deadlineMs) {
      return ClusterServiceGrpc.newBlockingStub(channel).withDeadlineAfter(deadlineMs, TimeUnit.MILLISECONDS);
    }
  }

  final AtomicInteger repeats = new AtomicInteger(); // attempts after the first, of all calls
  final AtomicInteger watches = new AtomicInteger(); // streams that were opened

  private final List<String> addresses;
  private final Map<String, Node> nodes = new ConcurrentHashMap<>();
  private final AtomicInteger turn = new AtomicInteger();
  private final Context.CancellableContext life = Context.ROOT.withCancellation();
  private final Thread watching = new Thread(life.wrap(this::watch), "watch");
  private tickwheel.v1.ClusterServiceOuterClass.Cluster map; // the newest that was seen; guarded by this

  /** Take the first map, and follow its changes from then on. Some of the addresses' nodes must be alive. */
  Cluster(List<String> addresses) throws InterruptedException {
    this.addresses = List.copyOf(addresses);
    keep(call(null, node -> node.cluster(ATTEMPT_MS).getCluster(GetClusterRequest.getDefaultInstance())));
    watching.start();
  }

  @Override
  public void close() throws InterruptedException {
    life.cancel(null);
    watching.join();
    for (var node : nodes.values()) {
      node.channel().shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  synchronized tickwheel.v1.ClusterServiceOuterClass.Cluster map() {
    return map;
  }

  /** Maps may come from different nodes and in any order: the revision says which is newer. */
  private synchronized void keep(tickwheel.v1.ClusterServiceOuterClass.Cluster shown) {
    if (map == null || shown.getRevision() >= map.getRevision()) {
      map = shown;
    }
  }

  /**
   * Make a call until it has a definite answer. The key is of the job that it is about, or null: any node answers any
   * call, the leader of the job's shard answers with one hop less.
   */
  <T> T call(Key key, Function<Node, T> attempt) throws InterruptedException {
    var until = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(CALL_MS);
    var start = turn.getAndIncrement();
    for (var tries = 0; ; tries++) {
      var order = route(key, start);
      try {
        return attempt.apply(node(order.get(tries % order.size())));
      } catch (StatusRuntimeException error) {
        if (!repeatable(error) || System.nanoTime() > until) {
          throw error;
        }
      }
      repeats.incrementAndGet();
      Thread.sleep(PAUSE_MS);
    }
  }

  /**
   * UNAVAILABLE: nothing was done, if a node says so; if the connection broke, nobody knows. DEADLINE_EXCEEDED: nobody
   * knows. All others are definite answers.
   */
  private static boolean repeatable(StatusRuntimeException error) {
    var code = error.getStatus().getCode();
    return code == Status.Code.UNAVAILABLE || code == Status.Code.DEADLINE_EXCEEDED;
  }

  /** Where to try, in this order: the leader of the job's shard, then every address in turn. */
  private List<String> route(Key key, int start) {
    var leader = key == null ? "" : leaderOf(key);
    var order = new ArrayList<String>();
    if (!leader.isEmpty()) {
      order.add(leader);
    }
    for (var k = 0; k < addresses.size(); k++) {
      var address = addresses.get(Math.floorMod(start + k, addresses.size()));
      if (!address.equals(leader)) {
        order.add(address);
      }
    }
    return order;
  }

  /** The address of the node that leads the job's shard, empty while nobody does. */
  private String leaderOf(Key key) {
    var shown = map();
    var shard = shown.getShards(key.shard(shown.getShardCount()));
    return shown.getNodesList().stream()
        .filter(node -> node.getName().equals(shard.getLeader()) && node.getAlive())
        .map(node -> node.getGrpcAddress())
        .findFirst()
        .orElse("");
  }

  private Node node(String address) {
    return nodes.computeIfAbsent(
        address, to -> new Node(Grpc.newChannelBuilder(to, InsecureChannelCredentials.create()).build()));
  }

  /** Read WatchCluster until the end; when a stream ends, for whatever reason, open one at the next address. */
  private void watch() {
    for (var tries = 0; !life.isCancelled(); tries++) {
      watches.incrementAndGet();
      var request = WatchClusterRequest.newBuilder().setAfterRevision(map().getRevision()).build();
      try {
        var stream = node(addresses.get(tries % addresses.size())).cluster(WATCH_MS).watchCluster(request);
        while (stream.hasNext()) {
          keep(stream.next().getCluster());
        }
        Thread.sleep(PAUSE_MS);
      } catch (StatusRuntimeException error) {
        var cancelled = error.getStatus().getCode() == Status.Code.CANCELLED && life.isCancelled();
        if (!repeatable(error) && !cancelled) {
          throw error;
        }
      } catch (InterruptedException error) {
        return;
      }
    }
  }
}

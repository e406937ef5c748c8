package tickwheel.example;

import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadPoolExecutor.DiscardPolicy;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.zip.CRC32;
import tickwheel.v1.ClusterServiceGrpc;
import tickwheel.v1.ClusterServiceOuterClass.GetClusterRequest;
import tickwheel.v1.ClusterServiceOuterClass.WatchClusterRequest;
import tickwheel.v1.JobServiceGrpc;
import tickwheel.v1.JobServiceOuterClass.WatchExecutionsRequest;
import tickwheel.v1.JobServiceOuterClass.WatchExecutionsResponse;

/**
 * The part to copy: a cluster of Tickwheel nodes as one service, for many threads.
 *
 * <p>It keeps the newest map of the cluster, knows which node leads a job's shard, and repeats a call on the next
 * address when a node does not answer. A repeat is the same request, {@code request_id} included, so it is safe however
 * often it is made. A watch goes on at the next address where it ended, by the token that came with its last message.
 */
final class Cluster implements AutoCloseable {
  private static final long ATTEMPT_MS = 3_000; // for one node to answer
  private static final long CALL_MS = 60_000; // for a call with all its repeats
  private static final long PAUSE_MS = 50; // between two attempts
  private static final long SILENCE_MS = 20_000; // then a watch is opened anew: executions say something every 15 s

  /** The job that a call is about. */
  record Key(String namespace, String job) {
    /** The shard of {@code namespaces/{namespace}/jobs/{job}}, as cluster_service.proto tells. */
    int shard(int shardCount) {
      var crc = new CRC32();
      crc.update((namespace + "/" + job).getBytes(StandardCharsets.UTF_8));
      return (int) (crc.getValue() % shardCount); // getValue is unsigned
    }
  }

  /** One node: for calls, with the deadline of one attempt, and for streams, which have none. */
  record Node(ManagedChannel channel) {
    JobServiceGrpc.JobServiceBlockingStub jobs() {
      return jobStreams().withDeadlineAfter(ATTEMPT_MS, TimeUnit.MILLISECONDS);
    }

    ClusterServiceGrpc.ClusterServiceBlockingStub cluster() {
      return clusterStreams().withDeadlineAfter(ATTEMPT_MS, TimeUnit.MILLISECONDS);
    }

    JobServiceGrpc.JobServiceBlockingStub jobStreams() {
      return JobServiceGrpc.newBlockingStub(channel);
    }

    ClusterServiceGrpc.ClusterServiceBlockingStub clusterStreams() {
      return ClusterServiceGrpc.newBlockingStub(channel);
    }
  }

  final AtomicInteger repeats = new AtomicInteger(); // attempts after the first, of all calls
  final AtomicInteger watches = new AtomicInteger(); // streams of executions that were opened

  private final List<String> addresses;
  private final Map<String, Node> nodes = new ConcurrentHashMap<>();
  private final AtomicInteger turn = new AtomicInteger();
  private final Context.CancellableContext life = Context.ROOT.withCancellation();
  private final Thread following = new Thread(this::follow, "follow");
  private final ScheduledThreadPoolExecutor timer = new ScheduledThreadPoolExecutor(1, new DiscardPolicy());
  private tickwheel.v1.ClusterServiceOuterClass.Cluster map; // the newest that was seen; guarded by this

  /** Take the first map, and follow its changes from then on. Some of the addresses' nodes must be alive. */
  Cluster(List<String> addresses) throws InterruptedException {
    this.addresses = List.copyOf(addresses);
    keep(call(null, node -> node.cluster().getCluster(GetClusterRequest.getDefaultInstance())));
    following.start();
  }

  /** End every watch and every connection. */
  @Override
  public void close() throws InterruptedException {
    life.cancel(null);
    following.join();
    timer.shutdownNow();
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

  /** Read WatchCluster until {@code close}. */
  private void follow() {
    watch(
        node -> {
          var request = WatchClusterRequest.newBuilder().setAfterRevision(map().getRevision());
          return node.clusterStreams().watchCluster(request.build());
        },
        message -> keep(message.getCluster()));
  }

  /**
   * Take executions of the parent, {@code namespaces/{namespace}/jobs/{job}} or {@code jobs/-} for all, as they change
   * from now on, until {@code close} or an interrupt. The first message has no execution, and says that the watch has
   * begun. Each change comes at least once.
   */
  void watchExecutions(String parent, Consumer<WatchExecutionsResponse> take) {
    var request = WatchExecutionsRequest.newBuilder().setParent(parent);
    watch(
        node -> {
          watches.incrementAndGet();
          return node.jobStreams().watchExecutions(request.build());
        },
        message -> {
          request.setResumeToken(message.getResumeToken());
          take.accept(message);
        });
  }

  /** The messages of a stream that never ends; when one does, for whatever reason, open one at the next address. */
  private <T> void watch(Function<Node, Iterator<T>> open, Consumer<T> take) {
    for (var tries = 0; !life.isCancelled(); tries++) {
      try {
        read(open, node(addresses.get(tries % addresses.size())), take);
      } catch (StatusRuntimeException error) {
        if (!repeatable(error) && error.getStatus().getCode() != Status.Code.CANCELLED) {
          throw error;
        }
      }
      try {
        Thread.sleep(PAUSE_MS);
      } catch (InterruptedException error) {
        return;
      }
    }
  }

  /** The messages of one stream until it ends, or says nothing for too long. */
  private <T> void read(Function<Node, Iterator<T>> open, Node node, Consumer<T> take) {
    var context = life.withCancellation();
    Supplier<Future<?>> alarm = () -> timer.schedule(() -> context.cancel(null), SILENCE_MS, TimeUnit.MILLISECONDS);
    context.run(
        () -> {
          var silence = alarm.get();
          try {
            for (var messages = open.apply(node); messages.hasNext(); ) {
              take.accept(messages.next());
              silence.cancel(false);
              silence = alarm.get();
            }
          } finally {
            silence.cancel(false);
            context.cancel(null);
          }
        });
  }
}

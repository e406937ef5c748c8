package tickwheel.example;

import static java.util.stream.Collectors.toCollection;

import com.google.protobuf.util.Timestamps;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import java.util.function.Function;
import tickwheel.v1.ClusterServiceOuterClass.Shard;
import tickwheel.v1.ExecutionOuterClass.Execution;
import tickwheel.v1.JobOuterClass.Job;
import tickwheel.v1.JobOuterClass.JobState;
import tickwheel.v1.JobServiceOuterClass.CancelJobRequest;
import tickwheel.v1.JobServiceOuterClass.CreateJobRequest;
import tickwheel.v1.JobServiceOuterClass.GetJobRequest;
import tickwheel.v1.JobServiceOuterClass.ListJobsRequest;
import tickwheel.v1.ScheduleOuterClass.Once;
import tickwheel.v1.ScheduleOuterClass.PastPolicy;
import tickwheel.v1.ScheduleOuterClass.Schedule;
import tickwheel.v1.Target.HttpTarget;

/**
 * Create, read, list, cancel and watch jobs while a node of the cluster dies, and check that it made no difference.
 *
 * <pre>
 * java -cp 'build/classes:build/lib/*' tickwheel.example.Scenario \
 *     127.0.0.1:7070,127.0.0.1:7071,127.0.0.1:7072 http://127.0.0.1:9000/ok [namespace]
 * </pre>
 *
 * <p>Kill a node with -9 when it says {@code ready to lose a node}; it waits for nothing. The exit code is 0 if every
 * check holds. The lines {@code job}, {@code cancel} and {@code seen} are for a judge that knows what the target saw;
 * ../README.md lists them.
 */
public final class Scenario {
  private static final int JOBS = 240;
  private static final int CALM = 40; // jobs that are made before it says that it is ready
  private static final int LANES = 4; // that work at the same time
  private static final long PAUSE_MS = 150; // between two jobs of a lane
  private static final int CANCEL_EVERY = 5;
  private static final long FIRE_MS = 3_000; // from a job's making to its time
  private static final long CANCELLED_FIRE_MS = 30_000; // of one that will be cancelled: a fail-over fits in between
  private static final int PAGE = 50;
  private static final long LEADER_MS = 30_000; // for the map to name new leaders
  private static final long SEEN_MS = 60_000; // for the watch to open, and for it to have seen the last success

  private record Made(CreateJobRequest request, String uid) {}

  private final Cluster cluster;
  private final String url;
  private final String namespace;
  private final String parent;
  private final AtomicInteger next = new AtomicInteger();
  private final Map<String, Made> made = new ConcurrentHashMap<>(); // by id
  private final Queue<String> cancelled = new ConcurrentLinkedQueue<>();
  private final Queue<String> wrong = new ConcurrentLinkedQueue<>();
  private final Map<String, Queue<String>> seen = new ConcurrentHashMap<>(); // by id: states, as they were watched
  private volatile boolean begun = false; // the watch
  private volatile boolean working = true;
  private volatile tickwheel.v1.ClusterServiceOuterClass.Cluster before; // the map when it was ready

  private Scenario(Cluster cluster, String url, String namespace) {
    this.cluster = cluster;
    this.url = url;
    this.namespace = namespace;
    this.parent = "namespaces/" + namespace;
  }

  private void check(boolean holds, String format, Object... values) {
    if (!holds) {
      wrong.add(format.formatted(values));
    }
  }

  /** One call: about a job, at its leader if there is one; about none (an empty id), anywhere. */
  private <T> T ask(String id, Function<Cluster.Node, T> call) throws InterruptedException {
    return cluster.call(id.isEmpty() ? null : new Cluster.Key(namespace, id), call);
  }

  private void run() throws Exception {
    check(new Cluster.Key("default", "nightly-report").shard(64) == 30, "the test vector of cluster_service.proto");
    ExecutorService threads = Executors.newFixedThreadPool(LANES + 2);
    try {
      var watching = threads.submit(this::watch);
      check(until(() -> begun || watching.isDone(), SEEN_MS) && begun, "the watch has not begun");
      Future<?> listing = threads.submit(task(this::keepListing));
      var lanes = new ArrayList<Future<?>>();
      for (var lane = 0; lane < LANES; lane++) {
        lanes.add(threads.submit(task(this::lane)));
      }
      for (var lane : lanes) {
        lane.get();
      }
      working = false;
      listing.get();
      sameAgain();
      allListed();
      allCancelled();
      newLeader();
      until(() -> missing().isEmpty() || watching.isDone(), SEEN_MS);
      threads.shutdownNow(); // which interrupts the watch
      watching.get();
      allSucceeded();
    } finally {
      threads.shutdownNow();
    }
  }

  /** Wait until something holds, and tell whether it does. */
  private static boolean until(BooleanSupplier holds, long patienceMs) throws InterruptedException {
    var end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(patienceMs);
    while (!holds.getAsBoolean() && System.nanoTime() < end) {
      Thread.sleep(PAUSE_MS);
    }
    return holds.getAsBoolean();
  }

  /** What becomes of the jobs: all their executions, from before the first job is made until the end. */
  private void watch() {
    cluster.watchExecutions(
        name("-"),
        message -> {
          begun = true;
          if (message.hasExecution()) {
            take(message.getExecution());
          }
        });
  }

  private void take(Execution execution) {
    var parts = execution.getName().split("/");
    var state = execution.getState().name().replaceFirst("^EXECUTION_STATE_", "");
    System.out.println("seen %s %s %s".formatted(parts[3], parts[5], state));
    seen.computeIfAbsent(parts[3], id -> new ConcurrentLinkedQueue<>()).add(state);
  }

  private interface Work {
    void run() throws InterruptedException;
  }

  private static Callable<Void> task(Work work) {
    return () -> {
      work.run();
      return null;
    };
  }

  private void lane() throws InterruptedException {
    for (var number = next.getAndIncrement(); number < JOBS; number = next.getAndIncrement()) {
      if (number == CALM) {
        before = cluster.map();
        System.out.println("ready to lose a node");
      }
      story(number);
      Thread.sleep(PAUSE_MS);
    }
  }

  /** One job: made, read, and every fifth cancelled. Every other one is named by the server, after its request_id. */
  private void story(int number) throws InterruptedException {
    var own = number % 2 == 0 ? "order-%03d".formatted(number) : "";
    var cancelling = number % CANCEL_EVERY == CANCEL_EVERY - 1;
    var dueMs = System.currentTimeMillis() + (cancelling ? CANCELLED_FIRE_MS : FIRE_MS);
    var request = creation(own, dueMs);
    var job = ask(own, node -> node.jobs().createJob(request));
    var id = job.getName().substring(job.getName().lastIndexOf('/') + 1);
    made.put(id, new Made(request, job.getUid()));
    check(own.isEmpty() || id.equals(own), "%s: made as %s", own, job.getName());
    var shard = new Cluster.Key(namespace, id).shard(cluster.map().getShardCount());
    System.out.println("job %s %s %d %d".formatted(id, job.getUid(), dueMs, shard));
    var read = get(id);
    check(read.getUid().equals(job.getUid()), "%s: made as %s, read as %s", id, job.getUid(), read.getUid());
    if (cancelling) {
      cancel(id);
    }
  }

  private String name(String id) {
    return parent + "/jobs/" + id;
  }

  /** The request is made once, with its request_id and its time: each repeat sends the same. */
  private CreateJobRequest creation(String id, long dueMs) {
    var once =
        Once.newBuilder().setScheduledTime(Timestamps.fromMillis(dueMs)).setPastPolicy(PastPolicy.PAST_POLICY_FIRE_NOW);
    var job =
        Job.newBuilder()
            .setSchedule(Schedule.newBuilder().setOnce(once))
            .setHttpTarget(HttpTarget.newBuilder().setUrl(url));
    return CreateJobRequest.newBuilder()
        .setParent(parent)
        .setJobId(id)
        .setRequestId(UUID.randomUUID().toString())
        .setJob(job)
        .build();
  }

  private Job get(String id) throws InterruptedException {
    var request = GetJobRequest.newBuilder().setName(name(id)).build();
    return ask(id, node -> node.jobs().getJob(request));
  }

  private void cancel(String id) throws InterruptedException {
    var request = CancelJobRequest.newBuilder().setName(name(id)).build();
    var sentMs = System.currentTimeMillis();
    var answer = ask(id, node -> node.jobs().cancelJob(request));
    var said = answer.getCancellation().name().replaceFirst("^CANCELLATION_", "");
    System.out.println("cancel %s %d %d %s".formatted(id, sentMs, System.currentTimeMillis(), said));
    check(said.equals("CANCELLED_BEFORE_DISPATCH"), "%s: the cancel says %s", id, said);
    cancelled.add(id);
  }

  /** List all the time: no page may hold a job twice. */
  private void keepListing() throws InterruptedException {
    while (working) {
      var names = pages(false);
      check(new HashSet<>(names).size() == names.size(), "a list holds a job twice: %s", names);
      Thread.sleep(PAUSE_MS);
    }
  }

  private List<String> pages(boolean consistent) throws InterruptedException {
    var names = new ArrayList<String>();
    var request = ListJobsRequest.newBuilder().setParent(parent).setPageSize(PAGE).setConsistent(consistent);
    do {
      var page = ask("", node -> node.jobs().listJobs(request.build()));
      page.getJobsList().forEach(job -> names.add(job.getName()));
      request.setPageToken(page.getNextPageToken());
    } while (!request.getPageToken().isEmpty());
    return names;
  }

  /** Every create once more, at any node: the same job. */
  private void sameAgain() throws InterruptedException {
    for (var was : made.values()) {
      var again = ask("", node -> node.jobs().createJob(was.request()));
      var uid = again.getUid();
      check(uid.equals(was.uid()), "%s: made as %s, and again as %s", again.getName(), was.uid(), uid);
    }
  }

  private void allListed() throws InterruptedException {
    var expected = made.keySet().stream().map(this::name).collect(toCollection(TreeSet::new));
    var names = pages(true);
    check(expected.size() == JOBS, "%d jobs were made, not %d", expected.size(), JOBS);
    check(names.size() == JOBS && expected.equals(new TreeSet<>(names)), "listed: %s; made: %s", names, expected);
  }

  private void allCancelled() throws InterruptedException {
    for (var id : cancelled) {
      var state = get(id).getState();
      check(state == JobState.JOB_STATE_CANCELLED, "%s: cancelled, and read as %s", id, state);
    }
  }

  /** Wait until the map that is followed names a new leader, and a leader for every shard. */
  private void newLeader() throws InterruptedException {
    if (!until(() -> !moved().isEmpty() && led(), LEADER_MS)) {
      check(false, "the map of revision %d names no new leader, or not all", cluster.map().getRevision());
      return;
    }
    var now = moved().get(0);
    var was = before.getShards(now.getNumber());
    System.out.println(
        "%d shards have a new leader; %s: %s epoch %d, now %s epoch %d"
            .formatted(
                moved().size(), now.getName(), was.getLeader(), was.getEpoch(), now.getLeader(), now.getEpoch()));
  }

  /** The watch, which began before the first job, has seen each job succeed, but for the cancelled ones. */
  private void allSucceeded() {
    check(missing().isEmpty(), "not seen to succeed: %s", missing());
    var undead = cancelled.stream().filter(seen::containsKey).toList();
    check(undead.isEmpty(), "cancelled, and seen to be carried out: %s", undead);
  }

  /** The jobs that the watch has still to see. */
  private List<String> missing() {
    return made.keySet().stream()
        .filter(id -> !cancelled.contains(id) && !(seen.containsKey(id) && seen.get(id).contains("SUCCEEDED")))
        .toList();
  }

  /** Shards whose leader is another than when it was ready, at a higher epoch. */
  private List<Shard> moved() {
    return cluster.map().getShardsList().stream().filter(this::moved).toList();
  }

  private boolean moved(Shard now) {
    var was = before.getShards(now.getNumber());
    return !now.getLeader().isEmpty() && !now.getLeader().equals(was.getLeader()) && now.getEpoch() > was.getEpoch();
  }

  private boolean led() {
    return cluster.map().getShardsList().stream().noneMatch(shard -> shard.getLeader().isEmpty());
  }

  /** The command line. */
  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2) {
      System.err.println("Scenario ADDRESS,ADDRESS,... URL [NAMESPACE]");
      System.exit(2);
    }
    var namespace = arguments.length > 2 ? arguments[2] : "default";
    Scenario scenario;
    try (var cluster = new Cluster(List.of(arguments[0].split(",")))) {
      scenario = new Scenario(cluster, arguments[1], namespace);
      scenario.run();
      System.out.println("%d made, %d cancelled".formatted(scenario.made.size(), scenario.cancelled.size()));
      System.out.println("repeats " + cluster.repeats);
      System.out.println("watches " + cluster.watches);
    }
    scenario.wrong.forEach(what -> System.out.println("WRONG " + what));
    if (!scenario.wrong.isEmpty()) {
      System.exit(1);
    }
    System.out.println("every check holds");
  }
}

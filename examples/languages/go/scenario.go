// Create, read, list, cancel and watch jobs while a node of the cluster dies, and check that it made no difference.
//
//	build/scenario 127.0.0.1:7070,127.0.0.1:7071,127.0.0.1:7072 http://127.0.0.1:9000/ok [namespace]
//
// Kill a node with -9 when it says "ready to lose a node"; it waits for nothing. The exit code is 0 if every check
// holds. The lines "job", "cancel" and "seen" are for a judge that knows what the target saw; ../README.md lists them.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	tw "tickwheel.example/scenario/build/tickwheelv1"
)

const (
	jobCount      = 240
	calm          = 40 // jobs that are made before it says that it is ready
	lanes         = 4  // that work at the same time
	lanePause     = 150 * time.Millisecond
	cancelEvery   = 5
	fireAfter     = 3 * time.Second  // from a job's making to its time
	cancelledFire = 30 * time.Second // the same, of one that will be cancelled: long enough for a fail-over in between
	pageSize      = 50
	leaderTime    = 30 * time.Second // for the map to name new leaders
	seenTime      = 60 * time.Second // for the watch to open, and for it to have seen the last success
)

type made struct {
	request *tw.CreateJobRequest
	uid     string
}

type scenario struct {
	cluster   *Cluster
	url       string
	namespace string

	mutex     sync.Mutex
	next      int
	made      map[string]made // by id
	cancelled []string
	wrong     []string
	before    *tw.Cluster         // the map when it was ready
	begun     bool                // the watch
	seen      map[string][]string // by id: states of its execution, as they were watched
}

func (s *scenario) check(holds bool, format string, values ...any) {
	if !holds {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		s.wrong = append(s.wrong, fmt.Sprintf(format, values...))
	}
}

// ask makes one call: about a job, at its leader if there is one; about none (an empty id), anywhere.
func ask[Q, A any](
	s *scenario, id string, method func(tw.JobServiceClient, context.Context, Q, ...grpc.CallOption) (A, error), request Q,
) A {
	var key *Key
	if id != "" {
		key = &Key{s.namespace, id}
	}
	answer, err := Call(context.Background(), s.cluster, key, func(ctx context.Context, stubs *Stubs) (A, error) {
		return method(stubs.jobs, ctx, request)
	})
	s.check(err == nil, "%T of %q: %v", request, id, err)
	return answer
}

func (s *scenario) parent() string        { return "namespaces/" + s.namespace }
func (s *scenario) name(id string) string { return s.parent() + "/jobs/" + id }
func nowMs() int64                        { return time.Now().UnixMilli() }
func short(said tw.Cancellation) string   { return strings.TrimPrefix(said.String(), "CANCELLATION_") }

// until waits until something holds, and tells whether it does.
func until(patience time.Duration, holds func() bool) bool {
	for end := time.Now().Add(patience); !holds() && time.Now().Before(end); {
		time.Sleep(lanePause)
	}
	return holds()
}

func (s *scenario) run() {
	var watching, working, listing sync.WaitGroup
	ctx, stopWatching := context.WithCancel(context.Background())
	watching.Go(func() { s.watch(ctx) })
	s.check(until(seenTime, s.hasBegun), "the watch has not begun")
	stop := make(chan struct{})
	listing.Go(func() { s.keepListing(stop) })
	for range lanes {
		working.Go(s.lane)
	}
	working.Wait()
	close(stop)
	listing.Wait()
	s.sameAgain()
	s.allListed()
	s.allCancelled()
	s.newLeader()
	until(seenTime, func() bool { return len(s.missing()) == 0 })
	stopWatching()
	watching.Wait()
	s.allSucceeded()
}

// watch what becomes of the jobs: all their executions, from before the first job is made until the end.
func (s *scenario) watch(ctx context.Context) {
	err := s.cluster.WatchExecutions(ctx, s.name("-"), func(message *tw.WatchExecutionsResponse) {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		s.begun = true
		if execution := message.GetExecution(); execution != nil {
			parts := strings.Split(execution.GetName(), "/")
			id, own := parts[3], parts[5]
			state := strings.TrimPrefix(execution.GetState().String(), "EXECUTION_STATE_")
			fmt.Printf("seen %s %s %s\n", id, own, state)
			s.seen[id] = append(s.seen[id], state)
		}
	})
	s.check(err == nil, "the watch ended: %v", err)
}

func (s *scenario) hasBegun() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.begun
}

func (s *scenario) lane() {
	for {
		number := s.take()
		if number >= jobCount {
			return
		}
		s.story(number)
		time.Sleep(lanePause)
	}
}

func (s *scenario) take() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.next == calm {
		s.before = s.cluster.Map()
		fmt.Println("ready to lose a node")
	}
	s.next++
	return s.next - 1
}

// story of one job: made, read, and every fifth cancelled. Every other one is named by the server, after its
// request_id.
func (s *scenario) story(number int) {
	own := ""
	if number%2 == 0 {
		own = fmt.Sprintf("order-%03d", number)
	}
	cancelling := number%cancelEvery == cancelEvery-1
	due := time.Now().Add(fireAfter).Truncate(time.Millisecond)
	if cancelling {
		due = due.Add(cancelledFire - fireAfter)
	}
	request := s.creation(own, due)
	job := ask(s, own, tw.JobServiceClient.CreateJob, request)
	id := job.GetName()[strings.LastIndex(job.GetName(), "/")+1:]
	s.mutex.Lock()
	s.made[id] = made{request, job.GetUid()}
	s.mutex.Unlock()
	s.check(own == "" || id == own, "%s: made as %q", own, job.GetName())
	shard := Key{s.namespace, id}.Shard(s.cluster.Map().GetShardCount())
	fmt.Printf("job %s %s %d %d\n", id, job.GetUid(), due.UnixMilli(), shard)
	read := ask(s, id, tw.JobServiceClient.GetJob, &tw.GetJobRequest{Name: s.name(id)})
	s.check(read.GetUid() == job.GetUid(), "%s: made as %s, read as %s", id, job.GetUid(), read.GetUid())
	if cancelling {
		s.cancel(id)
	}
}

// creation is made once, with its request_id and its time: each repeat sends the same.
func (s *scenario) creation(id string, due time.Time) *tw.CreateJobRequest {
	return &tw.CreateJobRequest{
		Parent:    s.parent(),
		JobId:     id,
		RequestId: randomID(),
		Job: &tw.Job{
			Schedule: &tw.Schedule{Kind: &tw.Schedule_Once{Once: &tw.Once{
				When:       &tw.Once_ScheduledTime{ScheduledTime: timestamppb.New(due)},
				PastPolicy: tw.PastPolicy_PAST_POLICY_FIRE_NOW,
			}}},
			Target: &tw.Job_HttpTarget{HttpTarget: &tw.HttpTarget{Url: s.url}},
		},
	}
}

func randomID() string {
	var bits [16]byte
	_, _ = rand.Read(bits[:]) // never fails, says its documentation
	return hex.EncodeToString(bits[:])
}

func (s *scenario) cancel(id string) {
	sent := nowMs()
	said := short(ask(s, id, tw.JobServiceClient.CancelJob, &tw.CancelJobRequest{Name: s.name(id)}).GetCancellation())
	fmt.Printf("cancel %s %d %d %s\n", id, sent, nowMs(), said)
	s.check(said == "CANCELLED_BEFORE_DISPATCH", "%s: the cancel says %s", id, said)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.cancelled = append(s.cancelled, id)
}

// keepListing lists all the time: no page may hold a job twice.
func (s *scenario) keepListing(stop <-chan struct{}) {
	for {
		names := s.pages(false)
		slices.Sort(names)
		s.check(len(slices.Compact(slices.Clone(names))) == len(names), "a list holds a job twice: %v", names)
		select {
		case <-stop:
			return
		case <-time.After(lanePause):
		}
	}
}

func (s *scenario) pages(consistent bool) []string {
	var names []string
	request := &tw.ListJobsRequest{Parent: s.parent(), PageSize: pageSize, Consistent: consistent}
	for {
		page := ask(s, "", tw.JobServiceClient.ListJobs, request)
		for _, job := range page.GetJobs() {
			names = append(names, job.GetName())
		}
		request.PageToken = page.GetNextPageToken()
		if request.PageToken == "" {
			return names
		}
	}
}

// sameAgain: every create once more, at any node, is the same job.
func (s *scenario) sameAgain() {
	for id, was := range s.made {
		again := ask(s, "", tw.JobServiceClient.CreateJob, was.request)
		s.check(again.GetUid() == was.uid, "%s: made as %s, and again as %s", id, was.uid, again.GetUid())
	}
}

func (s *scenario) allListed() {
	var expected []string
	for id := range s.made {
		expected = append(expected, s.name(id))
	}
	names := s.pages(true)
	slices.Sort(expected)
	slices.Sort(names)
	s.check(len(expected) == jobCount, "%d jobs were made, not %d", len(expected), jobCount)
	s.check(slices.Equal(names, expected), "listed: %v; made: %v", names, expected)
}

func (s *scenario) allCancelled() {
	for _, id := range s.cancelled {
		state := ask(s, id, tw.JobServiceClient.GetJob, &tw.GetJobRequest{Name: s.name(id)}).GetState()
		s.check(state == tw.JobState_JOB_STATE_CANCELLED, "%s: cancelled, and read as %s", id, state)
	}
}

// newLeader waits until the map that is followed names a new leader, and a leader for every shard.
func (s *scenario) newLeader() {
	if !until(leaderTime, func() bool { return len(s.moved()) > 0 && s.led() }) {
		s.check(false, "the map of revision %d names no new leader, or not all", s.cluster.Map().GetRevision())
		return
	}
	moved := s.moved()
	now := moved[0]
	was := s.before.GetShards()[now.GetNumber()]
	fmt.Printf("%d shards have a new leader; %s: %s epoch %d, now %s epoch %d\n",
		len(moved), now.GetName(), was.GetLeader(), was.GetEpoch(), now.GetLeader(), now.GetEpoch())
}

// allSucceeded: the watch, which began before the first job, has seen each job succeed, but for the cancelled ones.
func (s *scenario) allSucceeded() {
	missing := s.missing()
	s.check(len(missing) == 0, "not seen to succeed: %v", missing)
	for _, id := range s.cancelled {
		s.check(s.seen[id] == nil, "%s: cancelled, and seen to be carried out", id)
	}
}

// missing are the jobs that the watch has still to see.
func (s *scenario) missing() []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var missing []string
	for id := range s.made {
		if !slices.Contains(s.cancelled, id) && !slices.Contains(s.seen[id], "SUCCEEDED") {
			missing = append(missing, id)
		}
	}
	return missing
}

// moved are the shards whose leader is another than when it was ready, at a higher epoch.
func (s *scenario) moved() []*tw.Shard {
	var moved []*tw.Shard
	for _, now := range s.cluster.Map().GetShards() {
		was := s.before.GetShards()[now.GetNumber()]
		if now.GetLeader() != "" && now.GetLeader() != was.GetLeader() && now.GetEpoch() > was.GetEpoch() {
			moved = append(moved, now)
		}
	}
	return moved
}

func (s *scenario) led() bool {
	return !slices.ContainsFunc(s.cluster.Map().GetShards(), func(shard *tw.Shard) bool {
		return shard.GetLeader() == ""
	})
}

func run(addresses []string, url, namespace string) int {
	cluster, err := Open(context.Background(), addresses)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s := &scenario{cluster: cluster, url: url, namespace: namespace, made: map[string]made{}, seen: map[string][]string{}}
	s.check(Key{"default", "nightly-report"}.Shard(64) == 30, "the test vector of cluster_service.proto")
	s.run()
	cluster.Close()
	fmt.Printf("%d made, %d cancelled\n", len(s.made), len(s.cancelled))
	fmt.Printf("repeats %d\nwatches %d\n", cluster.repeats.Load(), cluster.watches.Load())
	for _, what := range s.wrong {
		fmt.Println("WRONG", what)
	}
	if len(s.wrong) > 0 {
		return 1
	}
	fmt.Println("every check holds")
	return 0
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "scenario ADDRESS,ADDRESS,... URL [NAMESPACE]")
		os.Exit(2)
	}
	namespace := "default"
	if len(os.Args) > 3 {
		namespace = os.Args[3]
	}
	os.Exit(run(strings.Split(os.Args[1], ","), os.Args[2], namespace))
}

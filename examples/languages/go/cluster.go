package main

// The part to copy: a cluster of Tickwheel nodes as one service.
//
// It keeps the newest map of the cluster, knows which node leads a job's shard, and repeats a call on the next address
// when a node does not answer. A repeat is the same request, request_id included, so it is safe however often it is
// made. A watch goes on at the next address where it ended, by the token that came with its last message.

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tw "tickwheel.example/scenario/build/tickwheelv1"
)

const (
	attemptTime = 3 * time.Second       // for one node to answer
	callTime    = 60 * time.Second      // for a call with all its repeats
	pause       = 50 * time.Millisecond // between two attempts
	silenceTime = 20 * time.Second      // then a watch is opened anew: a watch of executions says something every 15 s
)

// Key is the job that a call is about.
type Key struct{ Namespace, Job string }

// Shard of namespaces/{namespace}/jobs/{job}, as proto/tickwheel/v1/cluster_service.proto tells.
func (key Key) Shard(shardCount int32) int32 {
	return int32(crc32.ChecksumIEEE([]byte(key.Namespace+"/"+key.Job)) % uint32(shardCount))
}

// Stubs of one node.
type Stubs struct {
	channel *grpc.ClientConn
	jobs    tw.JobServiceClient
	cluster tw.ClusterServiceClient
}

// Cluster is safe for concurrent use.
type Cluster struct {
	addresses []string
	repeats   atomic.Int64 // attempts after the first, of all calls
	watches   atomic.Int64 // streams of executions that were opened
	turn      atomic.Int64
	following sync.WaitGroup
	stop      context.CancelFunc

	mutex sync.Mutex
	shown *tw.Cluster // the newest map that was seen
	stubs map[string]*Stubs
}

// Open takes the first map, and follows its changes from then on. The addresses are host:port of some nodes, at least
// one of them alive.
func Open(ctx context.Context, addresses []string) (*Cluster, error) {
	cluster := &Cluster{addresses: addresses, stubs: map[string]*Stubs{}}
	first, err := Call(ctx, cluster, nil, func(ctx context.Context, stubs *Stubs) (*tw.Cluster, error) {
		return stubs.cluster.GetCluster(ctx, &tw.GetClusterRequest{})
	})
	if err != nil {
		return nil, err
	}
	cluster.keep(first)
	ctx, cluster.stop = context.WithCancel(ctx)
	cluster.following.Go(func() { cluster.follow(ctx) })
	return cluster, nil
}

// Close ends every connection.
func (cluster *Cluster) Close() {
	cluster.stop()
	cluster.following.Wait()
	cluster.mutex.Lock()
	defer cluster.mutex.Unlock()
	for _, stubs := range cluster.stubs {
		stubs.channel.Close()
	}
}

// Map is the newest one. Do not change it.
func (cluster *Cluster) Map() *tw.Cluster {
	cluster.mutex.Lock()
	defer cluster.mutex.Unlock()
	return cluster.shown
}

// Call makes a call until it has a definite answer. The key is of the job it is about, or nil: any node answers any
// call, the leader of the job's shard answers with one hop less.
func Call[T any](
	ctx context.Context, cluster *Cluster, key *Key, attempt func(context.Context, *Stubs) (T, error),
) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	start := int(cluster.turn.Add(1))
	for tries := 0; ; tries++ {
		addresses := cluster.route(key, start)
		stubs, err := cluster.stubsOf(addresses[tries%len(addresses)])
		if err != nil {
			var none T
			return none, err
		}
		once, done := context.WithTimeout(ctx, attemptTime)
		answer, err := attempt(once, stubs)
		done()
		if err == nil || !repeatable(err) || ctx.Err() != nil {
			return answer, err
		}
		cluster.repeats.Add(1)
		time.Sleep(pause)
	}
}

// repeatable tells what is no answer. UNAVAILABLE: nothing was done, if a node says so; if the connection broke, nobody
// knows. DEADLINE_EXCEEDED: nobody knows. All others are definite answers.
func repeatable(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// route says where to try, in this order: the leader of the job's shard, then every address in turn.
func (cluster *Cluster) route(key *Key, start int) []string {
	leader := cluster.leaderOf(key)
	order := make([]string, 0, len(cluster.addresses)+1)
	if leader != "" {
		order = append(order, leader)
	}
	for k := range cluster.addresses {
		if address := cluster.addresses[(start+k)%len(cluster.addresses)]; address != leader {
			order = append(order, address)
		}
	}
	return order
}

// leaderOf is the address of the node that leads the job's shard, empty while nobody does.
func (cluster *Cluster) leaderOf(key *Key) string {
	shown := cluster.Map()
	if key == nil || shown == nil {
		return ""
	}
	shard := shown.GetShards()[key.Shard(shown.GetShardCount())]
	for _, node := range shown.GetNodes() {
		if node.GetName() == shard.GetLeader() && node.GetAlive() {
			return node.GetGrpcAddress()
		}
	}
	return ""
}

func (cluster *Cluster) stubsOf(address string) (*Stubs, error) {
	cluster.mutex.Lock()
	defer cluster.mutex.Unlock()
	if stubs := cluster.stubs[address]; stubs != nil {
		return stubs, nil
	}
	channel, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: pause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: attemptTime,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	stubs := &Stubs{channel, tw.NewJobServiceClient(channel), tw.NewClusterServiceClient(channel)}
	cluster.stubs[address] = stubs
	return stubs, nil
}

// keep the newer map: they may come from different nodes and in any order, and the revision says which is newer.
func (cluster *Cluster) keep(shown *tw.Cluster) {
	cluster.mutex.Lock()
	defer cluster.mutex.Unlock()
	if cluster.shown == nil || shown.GetRevision() >= cluster.shown.GetRevision() {
		cluster.shown = shown
	}
}

// follow reads WatchCluster until the context ends. An error that lasts leaves the map as it is: a hint.
func (cluster *Cluster) follow(ctx context.Context) {
	open := func(ctx context.Context, stubs *Stubs) (grpc.ServerStreamingClient[tw.WatchClusterResponse], error) {
		return stubs.cluster.WatchCluster(ctx, &tw.WatchClusterRequest{AfterRevision: cluster.Map().GetRevision()})
	}
	_ = watch(ctx, cluster, open, func(message *tw.WatchClusterResponse) { cluster.keep(message.GetCluster()) })
}

// WatchExecutions takes executions of the parent, namespaces/{namespace}/jobs/{job} or jobs/- for all, as they change
// from now on, until the context ends. The first message has no execution, and says that the watch has begun. Each
// change comes at least once.
func (cluster *Cluster) WatchExecutions(
	ctx context.Context, parent string, take func(*tw.WatchExecutionsResponse),
) error {
	request := &tw.WatchExecutionsRequest{Parent: parent}
	open := func(ctx context.Context, stubs *Stubs) (grpc.ServerStreamingClient[tw.WatchExecutionsResponse], error) {
		cluster.watches.Add(1)
		return stubs.jobs.WatchExecutions(ctx, request)
	}
	return watch(ctx, cluster, open, func(message *tw.WatchExecutionsResponse) {
		request.ResumeToken = message.GetResumeToken()
		take(message)
	})
}

// watch takes the messages of a stream that never ends; when one does, for whatever reason, it opens one at the next
// address. It returns when the context ends, or with an error that no other node would answer otherwise.
func watch[A any](
	ctx context.Context, cluster *Cluster,
	open func(context.Context, *Stubs) (grpc.ServerStreamingClient[A], error), take func(*A),
) error {
	for tries := 0; ctx.Err() == nil; tries++ {
		stubs, err := cluster.stubsOf(cluster.addresses[tries%len(cluster.addresses)])
		if err != nil {
			return err
		}
		err = read(ctx, stubs, open, take)
		silent := status.Code(err) == codes.Canceled
		if ctx.Err() == nil && !silent && !repeatable(err) && !errors.Is(err, io.EOF) {
			return err
		}
		time.Sleep(pause)
	}
	return nil
}

// read takes the messages of one stream until it ends, or says nothing for too long.
func read[A any](
	ctx context.Context, stubs *Stubs,
	open func(context.Context, *Stubs) (grpc.ServerStreamingClient[A], error), take func(*A),
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(silenceTime, cancel)
	defer silence.Stop()
	stream, err := open(ctx, stubs)
	for err == nil {
		var message *A
		if message, err = stream.Recv(); err == nil {
			silence.Reset(silenceTime)
			take(message)
		}
	}
	return err
}

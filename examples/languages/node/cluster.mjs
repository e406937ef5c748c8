// The part to copy: a cluster of Tickwheel nodes as one service.
//
// It keeps the newest map of the cluster, knows which node leads a job's shard, and repeats a call on the next address
// when a node does not answer. A repeat is the same request, `request_id` included, so it is safe however often it is
// made. A watch goes on at the next address where it ended, by the token that came with its last message.

import { setTimeout as sleep } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import grpc from '@grpc/grpc-js';
import { ClusterServiceClient } from './build/stubs/tickwheel/v1/cluster_service.grpc-client.js';
import { WatchExecutionsRequest } from './build/stubs/tickwheel/v1/job_service.js';
import { JobServiceClient } from './build/stubs/tickwheel/v1/job_service.grpc-client.js';

const ATTEMPT_MS = 3_000; // for one node to answer
const CALL_MS = 60_000; // for a call with all its repeats
const PAUSE_MS = 50; // between two attempts
const SILENCE_MS = 20_000; // then a watch is opened anew: a watch of executions says something every 15 s

// UNAVAILABLE: nothing was done, if a node says so; if the connection broke, nobody knows. DEADLINE_EXCEEDED: nobody
// knows. All others are definite answers.
const REPEATABLE = new Set([grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED]);

const CHANNEL = {
  'grpc.initial_reconnect_backoff_ms': 50,
  'grpc.max_reconnect_backoff_ms': 500,
};

/** The shard of `namespaces/{namespace}/jobs/{job}`, as proto/tickwheel/v1/cluster_service.proto tells. */
export function shardOf(namespace, job, shardCount) {
  return crc32(`${namespace}/${job}`) % shardCount;
}

export class Cluster {
  /** @param {string[]} addresses `host:port` of some nodes, at least one of them alive. */
  constructor(addresses) {
    this.addresses = addresses;
    this.map = null; // the newest that was seen
    this.repeats = 0; // attempts after the first, of all calls
    this.watches = 0; // streams of executions that were opened
    this.streams = new Set(); // those that are open, of any kind
    this.stubs = new Map();
    this.turn = 0;
    this.closed = false;
  }

  /** Take the first map, and follow its changes from then on. */
  async open() {
    this.keep(await this.call(null, (stubs, options) => unary(stubs.cluster, 'getCluster', {}, options)));
    this.following = this.follow();
  }

  /** End every watch and every connection. */
  async close() {
    this.closed = true;
    for (const stream of this.streams) stream.cancel();
    await this.following;
    for (const stubs of this.stubs.values()) {
      stubs.jobs.close();
      stubs.cluster.close();
    }
  }

  /**
   * Make a call until it has a definite answer. `key` is {namespace, job} of the job it is about, or null: any node
   * answers any call, the leader of the job's shard answers with one hop less.
   */
  async call(key, attempt) {
    const until = Date.now() + CALL_MS;
    const start = this.turn++;
    for (let tries = 0; ; tries++) {
      const addresses = this.route(key, start);
      const stubs = this.stubsOf(addresses[tries % addresses.length]);
      try {
        return await attempt(stubs, { deadline: Date.now() + ATTEMPT_MS });
      } catch (error) {
        if (!REPEATABLE.has(error.code) || Date.now() > until) throw error;
        this.repeats++;
      }
      await sleep(PAUSE_MS);
    }
  }

  /** Where to try, in this order: the leader of the job's shard, then every address in turn. */
  route(key, start) {
    const all = this.addresses.map((_, k) => this.addresses[(start + k) % this.addresses.length]);
    const leader = key && this.leaderOf(key);
    return leader ? [leader, ...all.filter((address) => address !== leader)] : all;
  }

  /** The address of the node that leads the job's shard, undefined while nobody does. */
  leaderOf({ namespace, job }) {
    const shard = this.map.shards[shardOf(namespace, job, this.map.shardCount)];
    return this.map.nodes.find((node) => node.name === shard.leader && node.alive)?.grpcAddress;
  }

  stubsOf(address) {
    if (!this.stubs.has(address)) {
      const insecure = grpc.credentials.createInsecure();
      this.stubs.set(address, {
        jobs: new JobServiceClient(address, insecure, CHANNEL),
        cluster: new ClusterServiceClient(address, insecure, CHANNEL),
      });
    }
    return this.stubs.get(address);
  }

  /** Maps may come from different nodes and in any order: the revision says which is newer. */
  keep(map) {
    if (this.map === null || map.revision >= this.map.revision) this.map = map;
  }

  /** Read WatchCluster until `close`. */
  async follow() {
    const open = ({ cluster }) => cluster.watchCluster({ afterRevision: this.map.revision });
    for await (const { cluster } of this.messages(open)) this.keep(cluster);
  }

  /**
   * Executions of `parent`, `namespaces/{namespace}/jobs/{job}` or `jobs/-` for all, as they change from now on, until
   * `close`. The first message has no execution, and says that the watch has begun. Each change comes at least once.
   */
  async *watchExecutions(parent) {
    let resumeToken = '';
    const open = ({ jobs }) => {
      this.watches++;
      return jobs.watchExecutions(WatchExecutionsRequest.create({ parent, resumeToken }));
    };
    for await (const message of this.messages(open)) {
      ({ resumeToken } = message);
      yield message;
    }
  }

  /** The messages of a stream that never ends; when one does, for whatever reason, `open` is asked at the next address. */
  async *messages(open) {
    for (let tries = 0; !this.closed; tries++) {
      yield* this.read(open(this.stubsOf(this.addresses[tries % this.addresses.length])));
      if (!this.closed) await sleep(PAUSE_MS);
    }
  }

  /** The messages of one stream until it breaks, or says nothing for too long. */
  async *read(stream) {
    this.streams.add(stream);
    const silence = setTimeout(() => stream.cancel(), SILENCE_MS);
    try {
      for await (const message of stream) {
        silence.refresh();
        yield message;
      }
    } catch (error) {
      if (!REPEATABLE.has(error.code) && error.code !== grpc.status.CANCELLED) throw error;
    } finally {
      clearTimeout(silence);
      this.streams.delete(stream);
    }
  }
}

/** A unary call of a stub as a promise. */
export function unary(stub, method, request, options) {
  return new Promise((resolve, reject) => {
    stub[method](request, new grpc.Metadata(), options, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Create, read, list, cancel and watch jobs while a node of the cluster dies, and check that it made no difference.
//
//     node scenario.mjs 127.0.0.1:7070,127.0.0.1:7071,127.0.0.1:7072 http://127.0.0.1:9000/ok [namespace]
//
// Kill a node with -9 when it says `ready to lose a node`; it waits for nothing. The exit code is 0 if every check
// holds. The lines `job`, `cancel` and `seen` are for a judge that knows what the target saw; ../README.md lists them.

import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Cluster, shardOf, unary } from './cluster.mjs';
import { ExecutionState } from './build/stubs/tickwheel/v1/execution.js';
import { JobState } from './build/stubs/tickwheel/v1/job.js';
import {
  CancelJobRequest,
  Cancellation,
  CreateJobRequest,
  GetJobRequest,
  ListJobsRequest,
} from './build/stubs/tickwheel/v1/job_service.js';
import { PastPolicy } from './build/stubs/tickwheel/v1/schedule.js';

const JOBS = 240;
const CALM = 40; // jobs that are made before it says that it is ready
const LANES = 4; // that work at the same time
const PAUSE_MS = 150; // between two jobs of a lane
const CANCEL_EVERY = 5;
const FIRE_MS = 3_000; // from a job's making to its time
const CANCELLED_FIRE_MS = 30_000; // the same, of one that will be cancelled: long enough for a fail-over in between
const PAGE = 50;
const LEADER_MS = 30_000; // for the map to name new leaders
const SEEN_MS = 60_000; // for the watch to open, and for it to have seen the last success

const wrong = [];
function check(holds, what) {
  if (!holds) wrong.push(what);
}

class Scenario {
  constructor(cluster, url, namespace) {
    this.cluster = cluster;
    this.url = url;
    this.namespace = namespace;
    this.parent = `namespaces/${namespace}`;
    this.made = new Map(); // name → {request, uid}
    this.cancelled = new Set();
    this.begun = false; // the watch
    this.seen = new Map(); // name → states of its execution, as they were watched
    this.next = 0;
    this.working = true;
    this.before = null; // the map when it was ready
  }

  /** One call: about a job, at its leader if there is one; about none (an empty id), anywhere. */
  ask(id, method, request) {
    const key = id ? { namespace: this.namespace, job: id } : null;
    return this.cluster.call(key, ({ jobs }, options) => unary(jobs, method, request, options));
  }

  async run() {
    this.watching = this.watch();
    check(await this.until(() => this.begun, SEEN_MS), 'the watch has not begun');
    const lister = this.list();
    await Promise.all(Array.from({ length: LANES }, () => this.lane()));
    this.working = false;
    await lister;
    await this.sameAgain();
    await this.allListed();
    await this.allCancelled();
    await this.newLeader();
    await this.allSucceeded();
  }

  /** Wait until something holds, and tell whether it does. */
  async until(holds, patienceMs) {
    const until = Date.now() + patienceMs;
    while (!holds() && Date.now() < until) await sleep(PAUSE_MS);
    return holds();
  }

  /** What becomes of the jobs: all their executions, from before the first job is made until the end. */
  async watch() {
    for await (const { execution } of this.cluster.watchExecutions(`${this.parent}/jobs/-`)) {
      this.begun = true;
      if (!execution) continue;
      const [, , , id, , own] = execution.name.split('/');
      const name = `${this.parent}/jobs/${id}`;
      const state = ExecutionState[execution.state];
      console.log(`seen ${id} ${own} ${state}`);
      this.seen.set(name, [...(this.seen.get(name) ?? []), state]);
    }
  }

  async lane() {
    while (this.next < JOBS) {
      const number = this.next++;
      if (number === CALM) {
        this.before = this.cluster.map;
        console.log('ready to lose a node');
      }
      await this.story(number);
      await sleep(PAUSE_MS);
    }
  }

  /** One job: made, read, and every fifth cancelled. Every other one is named by the server, after its request_id. */
  async story(number) {
    const own = number % 2 ? '' : `order-${String(number).padStart(3, '0')}`;
    const cancel = number % CANCEL_EVERY === CANCEL_EVERY - 1;
    const due = Date.now() + (cancel ? CANCELLED_FIRE_MS : FIRE_MS);
    const request = this.creation(own, due);
    const made = await this.ask(own, 'createJob', request);
    const { name } = made;
    const id = name.slice(name.lastIndexOf('/') + 1);
    this.made.set(name, { request, uid: made.uid });
    check(!own || name === `${this.parent}/jobs/${own}`, `${own}: made as ${name}`);
    const shard = shardOf(this.namespace, id, this.cluster.map.shardCount);
    console.log(`job ${id} ${made.uid} ${due} ${shard}`);
    const read = await this.ask(id, 'getJob', GetJobRequest.create({ name }));
    check(read.uid === made.uid, `${id}: made as ${made.uid}, read as ${read.uid}`);
    if (cancel) await this.cancel(id, name);
  }

  /** The request is made once, with its `request_id` and its time: each repeat sends the same. */
  creation(id, due) {
    const scheduledTime = { seconds: BigInt(Math.floor(due / 1_000)), nanos: (due % 1_000) * 1_000_000 };
    return CreateJobRequest.create({
      parent: this.parent,
      jobId: id,
      requestId: randomUUID(),
      job: {
        schedule: {
          kind: {
            oneofKind: 'once',
            once: { when: { oneofKind: 'scheduledTime', scheduledTime }, pastPolicy: PastPolicy.FIRE_NOW },
          },
        },
        target: { oneofKind: 'httpTarget', httpTarget: { url: this.url } },
      },
    });
  }

  async cancel(id, name) {
    const sent = Date.now();
    const answer = await this.ask(id, 'cancelJob', CancelJobRequest.create({ name }));
    const said = Cancellation[answer.cancellation];
    console.log(`cancel ${id} ${sent} ${Date.now()} ${said}`);
    check(said === 'CANCELLED_BEFORE_DISPATCH', `${id}: the cancel says ${said}`);
    this.cancelled.add(name);
  }

  /** List all the time: no page may hold a job twice. */
  async list() {
    while (this.working) {
      const names = await this.pages(false);
      check(new Set(names).size === names.length, `a list holds a job twice: ${names}`);
      await sleep(PAUSE_MS);
    }
  }

  async pages(consistent) {
    const names = [];
    let pageToken = '';
    do {
      const request = ListJobsRequest.create({ parent: this.parent, pageSize: PAGE, pageToken, consistent });
      const page = await this.ask('', 'listJobs', request);
      names.push(...page.jobs.map((job) => job.name));
      pageToken = page.nextPageToken;
    } while (pageToken);
    return names;
  }

  /** Every create once more, at any node: the same job. */
  async sameAgain() {
    for (const [name, { request, uid }] of this.made) {
      const again = await this.ask('', 'createJob', request);
      check(again.uid === uid, `${name}: made as ${uid}, and again as ${again.uid}`);
    }
  }

  async allListed() {
    const names = (await this.pages(true)).sort();
    const expected = [...this.made.keys()].sort();
    check(expected.length === JOBS, `${expected.length} jobs were made, not ${JOBS}`);
    check(names.join() === expected.join(), `listed: ${names}; made: ${expected}`);
  }

  async allCancelled() {
    for (const name of this.cancelled) {
      const id = name.slice(name.lastIndexOf('/') + 1);
      const { state } = await this.ask(id, 'getJob', GetJobRequest.create({ name }));
      check(state === JobState.CANCELLED, `${id}: cancelled, and read as ${JobState[state]}`);
    }
  }

  /** Wait until the map that is followed names a new leader, and a leader for every shard. */
  async newLeader() {
    const named = await this.until(() => this.moved().length > 0 && this.led(), LEADER_MS);
    check(named, `the map of revision ${this.cluster.map.revision} names no new leader, or not all`);
    if (!named) return;
    const [first] = this.moved();
    const was = this.before.shards[first.number];
    console.log(
      `${this.moved().length} shards have a new leader; ${first.name}: ${was.leader} epoch ${was.epoch}, ` +
        `now ${first.leader} epoch ${first.epoch}`,
    );
  }

  /** Wait until the watch, which began before the first job, has seen each job succeed, but for the cancelled ones. */
  async allSucceeded() {
    const missing = () =>
      [...this.made.keys()].filter((name) => !this.cancelled.has(name) && !this.seen.get(name)?.includes('SUCCEEDED'));
    await this.until(() => !missing().length, SEEN_MS);
    check(!missing().length, `not seen to succeed: ${missing()}`);
    const undead = [...this.seen.keys()].filter((name) => this.cancelled.has(name));
    check(!undead.length, `cancelled, and seen to be carried out: ${undead}`);
  }

  /** Shards whose leader is another than when it was ready, at a higher epoch. */
  moved() {
    const { shards } = this.cluster.map;
    return shards.filter((now) => {
      const was = this.before.shards[now.number];
      return now.leader && now.leader !== was.leader && now.epoch > was.epoch;
    });
  }

  led() {
    return this.cluster.map.shards.every((shard) => shard.leader);
  }
}

async function main([addresses, url, namespace = 'default']) {
  check(shardOf('default', 'nightly-report', 64) === 30, 'the test vector of cluster_service.proto');
  const cluster = new Cluster(addresses.split(','));
  await cluster.open();
  const scenario = new Scenario(cluster, url, namespace);
  await scenario.run();
  await cluster.close();
  await scenario.watching;
  console.log(`${scenario.made.size} made, ${scenario.cancelled.size} cancelled`);
  console.log(`repeats ${cluster.repeats}`);
  console.log(`watches ${cluster.watches}`);
  for (const what of wrong) console.log(`WRONG ${what}`);
  if (!wrong.length) console.log('every check holds');
  return wrong.length ? 1 : 0;
}

if (process.argv.length < 4) {
  console.error('node scenario.mjs ADDRESS,ADDRESS,... URL [NAMESPACE]');
  process.exit(2);
}
process.exit(await main(process.argv.slice(2)));

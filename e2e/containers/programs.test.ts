// Real programs, each checkpointed and restored twice in a row; afterwards the
// program's own view is checked, not only that a process exists.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { readOrEmpty } from '../support/processes.js';
import { capabilitySets } from '../support/spec.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';
import { clientOf, redisConfiguration, writeRedisLoad } from '../support/redis.js';

describe('programs', () => {
  const bed = useTestBed();

  for (const streams of ['file', 'pipe'] as const) {
    it(`busybox shells in a pipeline, standard output a ${streams}`, async () => {
      const program = `
        n=0
        while :; do n=$((n + 1)); echo "$n"; sleep 0.02; done |
          while read -r line; do echo "got $line"; done |
          tee /data/copy
      `;
      const container = await bed.start({ args: ['sh', '-c', program], streams });
      await container.waitForOutput(/got 5\n/);
      for (let round = 0; round < 2; round++) {
        await container.cycle();
        const reached = lineCount(container);
        await waitFor('the pipeline to go on', () => (lineCount(container) > reached + 5 ? true : undefined));
      }
      const lines = container.output().trimEnd().split('\n');
      assert.deepEqual(
        lines,
        lines.map((_, index) => `got ${index + 1}`),
        'a line is lost, doubled or out of order',
      );
      assert.equal(existsSync(join(container.rootfs, 'data/copy')), true);
    });
  }

  it('python3 with 20 threads, 50 MB of heap, timers and signal handlers', async () => {
    const container = await bed.start({
      rootfs: 'debian',
      args: ['/usr/bin/python3', '-u', '/data/program.py'],
      files: { 'data/program.py': pythonProgram },
    });
    await container.waitForOutput(/READY/, 30_000);
    for (let round = 1; round <= 2; round++) {
      await container.cycle();
      await container.kill('USR1');
      const report = await container.waitForOutput(new RegExp(`^REPORT ${round} (.*)$`, 'm'), 30_000);
      const facts = JSON.parse(report[1] ?? '') as PythonReport;
      assert.equal(facts.threads_alive, 20, 'threads are missing');
      assert.equal(facts.heap_intact, true, 'the heap changed');
      assert.equal(facts.locals_intact, true, 'a thread lost its local variable');
      assert.ok(facts.ticks_since > 0, 'the interval timer has stopped');
      assert.ok(facts.moving_threads === 20, `only ${facts.moving_threads} threads work`);
    }
  });

  it('redis-server with 200 MB of data and an append-only file', async () => {
    const container = await bed.start({
      rootfs: 'debian',
      args: ['/usr/bin/redis-server', '/data/redis.conf'],
      files: { 'data/redis.conf': redisConfiguration },
    });
    const redis = clientOf(container);
    await redis.untilReady();
    await writeRedisLoad(join(container.rootfs, 'data/load'), 200);
    await container.must(['exec', container.id, 'sh', '-c', 'redis-cli --pipe </data/load']);
    const before = await redis.contents();
    assert.ok(before.keys >= 200_000, `only ${before.keys} keys were loaded`);
    for (let round = 1; round <= 2; round++) {
      await container.cycle();
      await redis.untilReady();
      assert.deepEqual(await redis.contents(), before, 'the data changed');
      assert.equal(await redis.ask('SET', `round`, String(round)), 'OK');
      assert.equal(await redis.ask('GET', 'round'), String(round));
      assert.equal(await redis.ask('DEL', 'round'), '1');
    }
    // The append-only file is complete and still in use: a new server reads the same data from it.
    assert.equal(await redis.ask('SET', 'last', 'word'), 'OK');
    assert.equal(await redis.ask('DEL', 'last'), '1');
    assert.match(await redis.ask('DEBUG', 'RELOAD', 'NOSAVE', 'NOFLUSH').catch(String), /OK|ERR/);
    assert.match(await redis.ask('DEBUG', 'LOADAOF'), /OK/);
    assert.deepEqual(await redis.contents(), before, 'the append-only file holds something else');
  });

  it('a program as user 1000 with capabilities dropped and a seccomp profile', async () => {
    const container = await bed.start({
      args: ['sh', '-c', 'n=0; while :; do n=$((n + 1)); echo $n >/tmp/n; sleep 0.02; done'],
      adjust: (spec) => {
        spec.process.user = { uid: 1000, gid: 1000, additionalGids: [2000, 3000] };
        spec.process.capabilities = capabilitySets([]);
        spec.process.noNewPrivileges = true;
        spec.mounts.push({
          destination: '/tmp',
          type: 'tmpfs',
          source: 'tmpfs',
          options: ['nosuid', 'nodev', 'mode=1777'],
        });
        spec.linux.seccomp = {
          defaultAction: 'SCMP_ACT_ALLOW',
          architectures: ['SCMP_ARCH_X86_64'],
          syscalls: [{ names: ['mkdirat', 'mkdir', 'sethostname'], action: 'SCMP_ACT_ERRNO', errnoRet: 99 }],
        };
      },
    });
    const reached = async (): Promise<number> =>
      Number((await container.stasis(['exec', container.id, 'cat', '/tmp/n'])).stdout);
    await waitFor('the program to count', async () => ((await reached()) > 5 ? true : undefined));
    const before = identityOf(await container.initPid());
    assert.match(before, /Seccomp:\t2/);
    for (let round = 1; round <= 2; round++) {
      await container.cycle();
      assert.equal(identityOf(await container.initPid()), before);
      const at = await reached();
      await waitFor('the program to count on', async () => ((await reached()) > at + 5 ? true : undefined));
    }
  });
});

interface PythonReport {
  readonly threads_alive: number;
  readonly moving_threads: number;
  readonly heap_intact: boolean;
  readonly locals_intact: boolean;
  readonly ticks_since: number;
}

// What the program says about itself on each SIGUSR1, as one line of JSON.
const pythonProgram = `
import json, signal, threading, time, zlib
THREADS = 20
heap = [bytes([i % 251]) * 4096 + str(i).encode() for i in range(12800)]
digest = zlib.crc32(b''.join(heap))
counts = [0] * THREADS
broken = []
local = threading.local()
ticks = 0
asked = 0

def work(number):
    local.value = ('thread', number)
    while True:
        counts[number] += 1
        if local.value != ('thread', number):
            broken.append(number)
        time.sleep(0.01)

def on_tick(signum, frame):
    global ticks
    ticks += 1

def on_ask(signum, frame):
    global asked
    asked += 1

signal.signal(signal.SIGALRM, on_tick)
signal.signal(signal.SIGUSR1, on_ask)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(THREADS)]
for worker in workers:
    worker.start()
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
print('READY', flush=True)
answered = 0
while True:
    if asked == answered:
        time.sleep(0.01)
        continue
    answered += 1
    then, tick = list(counts), ticks
    limit = time.monotonic() + 5
    while time.monotonic() < limit and (ticks == tick or any(a == b for a, b in zip(then, counts))):
        time.sleep(0.01)
    print('REPORT', answered, json.dumps({
        'threads_alive': sum(worker.is_alive() for worker in workers),
        'moving_threads': sum(a != b for a, b in zip(then, counts)),
        'heap_intact': zlib.crc32(b''.join(heap)) == digest,
        'locals_intact': not broken,
        'ticks_since': ticks - tick,
    }), flush=True)
`;

function lineCount(container: Container): number {
  return container.output().split('\n').length - 1;
}

function identityOf(hostPid: number): string {
  const wanted = /^(Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp|Seccomp_filters):/;
  return readOrEmpty(`/proc/${hostPid}/status`)
    .split('\n')
    .filter((line) => wanted.test(line))
    .join('\n');
}

// Programs that start from an image of their process: docs/design/0072. Real
// images, of node with a program that tells what it finds. Needs the built programs.
import assert from 'node:assert/strict';
import { spawn, spawnSync, type SpawnSyncReturns } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildDirectory } from '../e2e/support/paths.js';

/** What a program of ours does at its start, and then what its first word says. */
const kProgram = `
const { readFileSync, readdirSync, readlinkSync, promises, writeSync } = require('node:fs');
const { execFile, spawn } = require('node:child_process');
const { Worker } = require('node:worker_threads');
const addon = { exports: {} };
process.dlopen(addon, require('node:path').join(require('node:path').dirname(process.execPath), 'stasis.node'));
const asked = process.env.STASIS_PROGRAM_IMAGE;
let words = process.argv.slice(2);
if (asked !== undefined) {
  if (require('node:fs').existsSync(__dirname + '/listens')) require('node:net').createServer().listen(0, '127.0.0.1', become);
  else become();
} else run();
function become() {
  words = addon.exports.awaitStart(Number(asked)).words;
  run();
}
function run() {
  const actions = {
    tell: () => writeSync(1, JSON.stringify({
      fromImage: asked !== undefined, why: process.env.STASIS_NO_IMAGE, words, environment: { ...process.env },
      pid: Number(readlinkSync('/proc/self')), cwd: process.cwd(), random: require('node:crypto').randomBytes(8).toString('hex'),
      status: readFileSync('/proc/thread-self/status', 'utf8'), command: readFileSync('/proc/self/cmdline', 'latin1'),
      limits: readFileSync('/proc/self/limits', 'utf8'),
      descriptors: readdirSync('/proc/self/fd').map(Number).sort((a, b) => a - b),
      streams: [0, 1, 2].map((fd) => readlinkSync('/proc/self/fd/' + fd)),
    })),
    // What uses threads, children, timers, memory.
    work: async () => {
      const text = await promises.readFile('/proc/self/stat', 'utf8');
      const child = await new Promise((done, fail) => execFile('/bin/echo', ['a child'], (error, out) => error ? fail(error) : done(out)));
      const sum = await new Promise((done) => new Worker('require("worker_threads").parentPort.postMessage(6 * 7)', { eval: true }).on('message', done));
      const kept = [];
      for (let round = 0; round < 60; round += 1) {
        kept.push(Array.from({ length: 40000 }, (_, at) => ({ at, text: 'x' + at })));
        if (kept.length > 8) kept.shift();
      }
      const late = await new Promise((done) => setTimeout(() => done('late'), 20));
      writeSync(1, JSON.stringify({ fromImage: asked !== undefined, stat: text.length > 0, child, sum, kept: kept.at(-1).at(-1).text, late }));
    },
    stream: () => process.stdout.write(asked !== undefined ? 'from image' : 'ordinary'),
    signals: () => {
      process.on('SIGTERM', () => { writeSync(1, 'asked to end'); process.exit(5); });
      writeSync(1, asked !== undefined ? 'from image;' : 'ordinary;');
      setInterval(() => undefined, 1000);
    },
    exit: () => process.exit(Number(words[2])),
  };
  actions[words[1] ?? 'tell']();
}
`;

interface Told {
  readonly fromImage: boolean;
  readonly why?: string;
  readonly words: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly pid: number;
  readonly cwd: string;
  readonly random: string;
  readonly status: string;
  readonly command: string;
  readonly limits: string;
  readonly descriptors: readonly number[];
  readonly streams: readonly string[];
}

describe('an image that a program starts from', function () {
  this.timeout(60_000);
  let directory = '';
  const path = (...names: string[]): string => join(directory, ...names);
  const launcher = (): string => path('bin/stasis');
  const image = (): string => path('lib/stasis/stasis.image');

  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'stasis-program-'));
    for (const folder of ['bin', 'lib/stasis']) mkdirSync(path(folder), { recursive: true });
    for (const name of [
      'bin/stasis',
      'bin/stasis-core',
      'lib/stasis/node',
      'lib/stasis/stasis.node',
      'lib/stasis/told-in-advance.so',
    ])
      copyFileSync(join(buildDirectory, name), path(name));
    writeFileSync(path('lib/stasis/launcher.conf'), 'node=node\nprograms=.\n');
    for (const name of ['stasis', 'criu']) writeFileSync(path(`lib/stasis/${name}.cjs`), kProgram);
    setUp();
  });
  after(() => rmSync(directory, { recursive: true, force: true }));

  function setUp(): void {
    const { status, stdout, stderr } = spawnSync(launcher(), ['setup'], { env: {}, cwd: '/', encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^wrote .*stasis\.image\nwrote .*criu\.image\n$/);
  }

  /** `version` is a verb of ours that takes whatever words the program does. */
  function start(words: readonly string[], options: Readonly<Record<string, unknown>> = {}): SpawnSyncReturns<string> {
    return spawnSync(launcher(), ['version', ...words], { env: {}, cwd: '/', encoding: 'utf8', ...options });
  }

  function tell(options: Readonly<Record<string, unknown>> = {}): Told {
    const { status, stdout, stderr } = spawnSync(launcher(), ['version'], { env: {}, encoding: 'utf8', ...options });
    assert.equal(status, 0, stderr);
    return JSON.parse(stdout) as Told;
  }

  it('is as an ordinary start to the program: its words, environment, directory, pid, limits, signals, streams', () => {
    const options = { env: { ONE: '1', PATH: '/bin' }, cwd: '/usr' };
    const told = tell(options);
    assert.equal(told.fromImage, true);
    assert.deepEqual(told.words, ['version']);
    assert.deepEqual(told.environment, { ONE: '1', PATH: '/bin' });
    assert.equal(told.cwd, '/usr');
    assert.equal(told.command, `${launcher()}\0version\0`);
    const ordinary = tell({ ...options, env: { ...options.env, STASIS_START: 'ordinary' } });
    assert.equal(ordinary.fromImage, false);
    assert.equal(ordinary.why, 'STASIS_START says so');
    const line = (text: string, name: string): string | undefined =>
      text.split('\n').find((candidate) => candidate.startsWith(name));
    for (const name of ['SigBlk', 'SigIgn', 'SigCgt', 'ShdPnd', 'Seccomp:', 'NoNewPrivs', 'Groups', 'CapEff', 'Umask'])
      assert.equal(line(told.status, name), line(ordinary.status, name), name);
    assert.equal(line(told.limits, 'Max open files'), line(ordinary.limits, 'Max open files'));
    assert.equal(told.streams.length, 3);
  });
  it('has no random numbers that another start has', () => {
    const numbers = Array.from({ length: 5 }, () => tell().random);
    assert.equal(new Set(numbers).size, 5);
  });
  it('leaves the numbers of descriptors to the caller that hands some on, and has standard streams in any case', () => {
    const file = openSync('/dev/zero', 'r');
    try {
      const told = tell({ stdio: ['ignore', 'pipe', 'pipe', file, file] });
      assert.equal(told.fromImage, true);
      assert.ok(told.descriptors.filter((fd) => fd < 256).length <= 7, told.descriptors.join(' '));
    } finally {
      closeSync(file);
    }
    const closed = spawnSync('/bin/sh', ['-c', `exec "${launcher()}" version <&- 2>&-`], { env: {}, encoding: 'utf8' });
    const told = JSON.parse(closed.stdout) as Told;
    assert.equal(told.fromImage, true);
    assert.deepEqual([told.streams[0], told.streams[2]], ['/dev/null', '/dev/null']);
  });
  it('works on with threads, children, timers and memory that is collected, many at a time', async () => {
    const all = await Promise.all(
      Array.from({ length: 8 }, async () => {
        const child = spawn(launcher(), ['version', 'work'], { env: {}, stdio: ['ignore', 'pipe', 'inherit'] });
        let text = '';
        for await (const chunk of child.stdout) text += String(chunk);
        return text;
      }),
    );
    for (const text of all) {
      assert.deepEqual(JSON.parse(text), {
        fromImage: true,
        stat: true,
        child: 'a child\n',
        sum: 42,
        kept: 'x39999',
        late: 'late',
      });
    }
  });
  it('goes on after the next boot, when the monotonic clock has been set back', () => {
    const uptime = Math.floor(Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]));
    const inTimeNamespace = ['--time', `--monotonic=${60 - uptime}`, '--fork', launcher(), 'version', 'work'];
    const worked = spawnSync('/usr/bin/unshare', inTimeNamespace, { env: {}, encoding: 'utf8' });
    assert.equal(worked.status, 0, worked.stderr);
    assert.equal((JSON.parse(worked.stdout) as { fromImage: boolean }).fromImage, true);
  });
  it('ends as it is told: by its status, by a signal that it handles, by one that it does not', async () => {
    assert.equal(start(['exit', '7']).status, 7);
    for (const [signal, words, status] of [
      ['SIGTERM', 'from image;asked to end', 5],
      ['SIGHUP', 'from image;', null],
    ] as const) {
      const child = spawn(launcher(), ['version', 'signals'], { env: {}, stdio: ['ignore', 'pipe', 'inherit'] });
      let text = '';
      child.stdout.on('data', (chunk) => {
        if (text === '') child.kill(signal);
        text += String(chunk);
      });
      const ended = await new Promise((done) => child.on('close', done));
      assert.deepEqual([text, ended], [words, status]);
    }
  });
  it('gives a pipe that it has written to back to its owner as it was: blocking', () => {
    const { stdout } = spawnSync(
      '/bin/sh',
      // The shell's own stdout is the pipe that the program makes non-blocking while it writes.
      ['-c', `"${launcher()}" version stream; echo; grep flags /proc/self/fdinfo/1`],
      { env: { PATH: '/bin:/usr/bin' }, encoding: 'utf8' },
    );
    const [said, flags] = stdout.split('\n');
    assert.equal(said, 'from image');
    assert.equal(Number.parseInt(flags!.split('\t')[1]!, 8) & 0o4000, 0, flags);
  });

  describe('is left alone, and the program starts in the ordinary way,', () => {
    /** What is done to the image, and the reason that the program is told. */
    function refuses(what: string, reason: RegExp, change: () => void): void {
      it(what, () => {
        copyFileSync(image(), path('kept'));
        change();
        try {
          const told = tell();
          assert.equal(told.fromImage, false);
          assert.match(told.why ?? '', reason);
          assert.deepEqual(told.words, ['version']);
        } finally {
          renameSync(path('kept'), image());
        }
        assert.equal(tell().fromImage, true);
      });
    }
    const overwrite = (offset: number, bytes: Buffer): void => {
      const file = openSync(image(), 'r+');
      writeSync(file, bytes, 0, bytes.length, offset);
      closeSync(file);
    };
    // As nativecore/base/program_image.h has them.
    const kCpu = 24;
    const kKernel = kCpu + 24 * 4;
    const kTables = kKernel + 256 + 6 * 8;

    refuses('where there is none', /^there is no image$/, () => rmSync(image()));
    refuses('where it is empty', /too short/, () => truncateSync(image(), 0));
    refuses('where it is cut short', /cut short/, () => truncateSync(image(), 1 << 20));
    refuses('where it is something else', /another version/, () => overwrite(0, Buffer.from('something')));
    refuses('on another processor', /another kind of processor/, () => overwrite(kCpu, Buffer.from([255])));
    refuses('under another kernel', /another kernel/, () => overwrite(kKernel, Buffer.from('2.6.32')));
    refuses('while the clock is behind its own', /has just been started/, () =>
      overwrite(kKernel + 256 + 4 * 8, Buffer.from([255, 255, 255, 255, 255, 255, 255, 127])),
    );
    for (let table = 0; table < 7; table += 1) {
      refuses(`where table ${table} lies outside of it`, /damaged/, () =>
        overwrite(kTables + 16 * table, Buffer.from([0, 0, 0, 0, 0, 0, 255, 127])),
      );
      refuses(`where table ${table} is longer than it`, /damaged/, () =>
        overwrite(kTables + 16 * table + 8, Buffer.from([255, 255, 255, 255, 255, 255, 255, 127])),
      );
    }
    for (const name of ['node', 'stasis.node', 'stasis.cjs', 'told-in-advance.so']) {
      it(`when ${name} has been replaced by a copy of it`, () => {
        const file = path('lib/stasis', name);
        renameSync(file, path('original'));
        copyFileSync(path('original'), file);
        assert.match(tell().why ?? '', /have changed/);
        setUp();
        assert.equal(tell().fromImage, true);
      });
    }

    it('when a number of its descriptors is in use', () => {
      const file = openSync('/dev/zero', 'r');
      const stdio = ['ignore', 'pipe', 'inherit', ...Array.from({ length: 256 }, () => file)];
      const told = tell({ stdio });
      closeSync(file);
      assert.match(told.why ?? '', /^a descriptor of the program is in use/);
    });
    it('when there are not enough descriptors', () => {
      const { stdout } = spawnSync('/bin/sh', ['-c', `ulimit -n 100; exec "${launcher()}" version tell`], {
        env: {},
        encoding: 'utf8',
      });
      assert.match((JSON.parse(stdout) as Told).why ?? '', /^descriptors are short$/);
    });
    it('when the environment names other files of ours', () => {
      const told = tell({ env: { STASIS_LIB_DIR: '/nowhere' } });
      assert.match(told.why ?? '', /STASIS_LIB_DIR/);
    });
  });

  describe('is made', () => {
    it('anew over an old one, and over what a killed setup has left, for its owner alone', () => {
      writeFileSync(`${image()}.new`, 'half of one');
      const before = readFileSync(image());
      setUp();
      assert.ok(!existsSync(`${image()}.new`));
      // It tells what guards the stacks of the program.
      assert.equal(statSync(image()).mode & 0o777, 0o600);
      assert.ok(!readFileSync(image()).equals(before), 'each has addresses of its own');
      assert.equal(tell().fromImage, true);
    });
    it('by one setup at a time', async () => {
      const other = spawn('/usr/bin/flock', [`${image()}.new`, '/bin/cat'], { stdio: ['pipe', 'pipe', 'inherit'] });
      try {
        other.stdin.write('locked');
        await once(other.stdout, 'data');
        const { status, stderr } = spawnSync(launcher(), ['setup'], { env: {}, encoding: 'utf8' });
        assert.equal(status, 1);
        assert.match(stderr, /: another setup is writing it \(.*stasis\.image\); it starts without one/);
        assert.equal(tell().fromImage, true);
      } finally {
        other.stdin.end();
      }
    });
    it('not of a program that ends, nor of one that has opened what no image holds; the old one stays', () => {
      const failure = (): string => {
        const { status, stderr } = spawnSync(launcher(), ['setup'], { env: {}, encoding: 'utf8' });
        assert.equal(status, 1);
        return stderr;
      };
      const program = path('lib/stasis/stasis.cjs');
      const old = readFileSync(image());
      writeFileSync(path('lib/stasis/listens'), '');
      assert.match(
        failure(),
        /^cannot write an image of .*node: the program has opened what no image keeps \(socket:\[\d+\]\); it starts/,
      );
      rmSync(path('lib/stasis/listens'));
      writeFileSync(program, 'process.exit(0);');
      assert.match(failure(), /the program ends before it waits to be started/);
      assert.ok(readFileSync(image()).equals(old));
      writeFileSync(program, kProgram);
      setUp();
      assert.equal(tell().fromImage, true);
    });
    it('where our programs are installed, after a rehearsal', () => {
      const { stdout } = spawnSync(join(buildDirectory, 'bin/stasis'), ['check', '--json'], {
        env: {},
        encoding: 'utf8',
      });
      const { features } = JSON.parse(stdout) as { features: { name: string; available: boolean; detail: string }[] };
      const found = features.find(({ name }) => name === 'start image');
      assert.deepEqual([found?.available, found?.detail], [true, 'our programs start from it']);
    });
  });
});

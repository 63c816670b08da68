// All tests, group by group; the last line counts them. Each group is a process
// of its own, so that one that dies is a failed group and not a lost run.
//   hack/test [GROUP...] [mocha options, such as -g TITLE]
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupVersion } from '../e2e/support/cgroups.js';
import { buildDirectory, peerDirectory, repository } from '../e2e/support/paths.js';
import { isInstalled, podmanSets, type PodmanSetName } from '../e2e/support/podman-sets.js';
import type { Summary } from './mocha-reporter.js';

type CgroupManager = 'cgroupfs' | 'systemd';

interface Group {
  readonly name: string;
  readonly what: string;
  run(mochaOptions: readonly string[]): Summary;
}

const compiled = join(buildDirectory, 'ts');
const privileged = ['cases', 'containers', 'faults'].map((folder) => `${compiled}/e2e/${folder}/**/*.test.js`);

// A private mount namespace in which /sys/fs/cgroup is a v2 tree and nothing else:
// the kernel lets one machine have both, and the host keeps what it has.
const pureVersion2 = 'umount -R -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"';

// /etc/stasis/config.json names the base runtime, in this mount namespace only.
const withConfiguration =
  'set -e; base=$1; shift; top=$(mktemp -d); mount -t tmpfs none "$top"; mkdir "$top/upper" "$top/work"; ' +
  'mount -t overlay -o "lowerdir=/etc,upperdir=$top/upper,workdir=$top/work" overlay /etc; umount -l "$top"; ' +
  'rmdir "$top"; mkdir -p /etc/stasis; printf \'{"runtime": "%s"}\' "$base" >/etc/stasis/config.json; exec "$@"';

// Every lane has mounts of its own: what others on the machine mount is not a test's leak.
const ownMounts = ['unshare', '-m'];

const groups: readonly Group[] = [
  {
    name: 'check',
    what: 'style, layers, generated files',
    run: () => single('check', process.execPath, [`${compiled}/hack/check.js`]),
  },
  { name: 'native', what: 'C++ tests (ctest)', run: runNative },
  { name: 'unit', what: 'TypeScript without privileges', run: (options) => runMocha('unit', [], options, []) },
  {
    name: 'v1',
    what: 'end to end on cgroup v1',
    run: (options) =>
      cgroupVersion() === 1
        ? runLane('v1', ownMounts, privileged, options)
        : skipped('v1', 'this host has no cgroup v1'),
  },
  {
    name: 'v2',
    what: 'end to end on pure cgroup v2',
    run: (options) => runLane('v2', cgroupVersion() === 2 ? ownMounts : inPureVersion2(), privileged, options),
  },
  {
    name: 'faults',
    what: 'kills at random times and at every step (more of them with hack/storm)',
    run: (options) => runLane(`v${cgroupVersion()}`, ownMounts, [`${compiled}/e2e/faults/**/*.test.js`], options),
  },
  {
    name: 'systemd',
    what: 'scopes of a real systemd, booted in namespaces of its own',
    run: (options) => runSystemd(options),
  },
  {
    name: 'interop',
    what: 'crit and checkpointctl read our images',
    run: (options) => runInterop(options),
  },
  {
    name: 'managers',
    what: 'podman drives an installed stasis',
    run: (options) => runManagers(options),
  },
  {
    name: 'daemons',
    what: 'containerd and docker drive an installed stasis',
    run: (options) => runDaemons(options),
  },
];

/** Groups that are run when none is named: `faults` is part of v1 and v2, `managers` and `daemons` install packages (hack/managers). */
const usual = groups.filter((group) => !['faults', 'managers', 'daemons'].includes(group.name));

function main(args: readonly string[]): void {
  if (args.includes('--list')) {
    for (const group of groups) console.log(`${group.name.padEnd(8)} ${group.what}`);
    return;
  }
  const named = groups.filter((group) => args.includes(group.name));
  const options = args.filter((word) => !groups.some((group) => group.name === word));
  const total: Summary = { passed: 0, failed: 0, skipped: 0 };
  const startedAt = performance.now();
  const chosen = named.length > 0 ? named : usual;
  // Before the lanes, which have tests with the peers, too.
  if (chosen.some(({ name }) => name === 'interop')) installPeers();
  for (const group of chosen) {
    console.log(`\n━━ ${group.name}: ${group.what}`);
    const groupStartedAt = performance.now();
    const summary = group.run(options);
    console.log(`   ${line(summary)} in ${seconds(groupStartedAt)}`);
    total.passed += summary.passed;
    total.failed += summary.failed;
    total.skipped += summary.skipped;
  }
  console.log(`\nall groups in ${seconds(startedAt)}`);
  console.log(line(total));
  process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
}

function runLane(
  lane: string,
  wrapper: readonly string[],
  files: readonly string[],
  options: readonly string[],
): Summary {
  // What the lane provides may not be skipped.
  const provides = ['root', 'built', `cgroup-${lane}`, ...(hasPeers() ? ['peers'] : [])].join(',');
  return runMocha(lane, files, options, wrapper, { STASIS_LANE: lane, STASIS_LANE_PROVIDES: provides });
}

/** Says itself what could not be had. */
function installPeers(): void {
  spawnSync(process.execPath, [`${compiled}/hack/peers.js`], { cwd: repository, stdio: 'inherit' });
}

function hasPeers(): boolean {
  return existsSync(join(peerDirectory, 'complete'));
}

function runInterop(options: readonly string[]): Summary {
  const provides = ['root', 'built', ...(hasPeers() ? ['peers'] : [])].join(',');
  const environment = { STASIS_LANE: 'interop', STASIS_LANE_PROVIDES: provides };
  return runMocha('interop', [`${compiled}/e2e/interop/**/*.test.js`], options, [], environment);
}

/** Every podman on every hierarchy that it is used with; crun never on v1. The last ones ask a systemd for scopes. */
const podmanLanes: readonly (readonly [set: PodmanSetName, version: 1 | 2, cgroups: CgroupManager])[] = [
  ['debian', 1, 'cgroupfs'],
  ['debian', 2, 'cgroupfs'],
  ['sid', 1, 'cgroupfs'],
  ['sid', 2, 'cgroupfs'],
  ['sid-crun', 2, 'cgroupfs'],
  ['debian', 1, 'systemd'],
  ['debian', 2, 'systemd'],
  ['sid', 2, 'systemd'],
  ['sid-crun', 2, 'systemd'],
];

function runManagers(options: readonly string[]): Summary {
  spawnSync(process.execPath, [`${compiled}/hack/managers.js`], { cwd: repository, stdio: 'inherit' });
  const total: Summary = { passed: 0, failed: 0, skipped: 0 };
  const only = process.env['STASIS_PODMAN_LANES']?.split(',');
  for (const [set, version, cgroups] of podmanLanes) {
    const name = `${set}-v${version}${cgroups === 'systemd' ? '-systemd' : ''}`;
    const lane = `managers-${name}`;
    if (only !== undefined && !only.includes(name)) continue;
    console.log(`\n── ${lane}: ${podmanSets[set].what}`);
    const summary =
      version === 1 && cgroupVersion() === 2
        ? skipped(lane, 'this host has no cgroup v1')
        : !isInstalled(podmanSets[set])
          ? skipped(lane, `${podmanSets[set].podman} is not installed`)
          : cgroups === 'systemd' && missingForSystemd() !== undefined
            ? skipped(lane, `there is no ${missingForSystemd()}`)
            : runPodmanLane(lane, set, version, cgroups, options);
    console.log(`   ${line(summary)}`);
    total.passed += summary.passed;
    total.failed += summary.failed;
    total.skipped += summary.skipped;
  }
  return total;
}

function runPodmanLane(
  lane: string,
  set: PodmanSetName,
  version: 1 | 2,
  cgroups: CgroupManager,
  options: readonly string[],
): Summary {
  const provides = ['root', 'built', 'podman', `cgroup-v${version}`, ...(hasPeers() ? ['peers'] : [])];
  if (cgroups === 'systemd') provides.push('systemd');
  const environment = {
    STASIS_LANE: lane,
    STASIS_LANE_PROVIDES: provides.join(','),
    STASIS_PODMAN: set,
    STASIS_CGROUP_MANAGER: cgroups,
  };
  const mounts = cgroups === 'systemd' ? underSystemd(version) : mountsFor(version);
  const { base } = podmanSets[set];
  const wrapper = base === undefined ? mounts : [...mounts, 'sh', '-c', withConfiguration, 'sh', base];
  const files = cgroups === 'systemd' ? 'systemd/*.test.js' : '*.test.js';
  return runMocha(lane, [`${compiled}/e2e/managers/${files}`], options, wrapper, environment);
}

/** On every hierarchy that the host has; with a /run of their own, where shims and daemons keep what is not configured. */
function runDaemons(options: readonly string[]): Summary {
  const installed = spawnSync(process.execPath, [`${compiled}/hack/daemons.js`], { cwd: repository, stdio: 'inherit' });
  const total: Summary = { passed: 0, failed: 0, skipped: 0 };
  const run = (lane: string, files: string, wrapper: readonly string[], environment: Record<string, string>): void => {
    console.log(`\n── ${lane}`);
    const summary = runMocha(lane, [`${compiled}/e2e/daemons/${files}`], options, wrapper, environment);
    console.log(`   ${line(summary)}`);
    total.passed += summary.passed;
    total.failed += summary.failed;
    total.skipped += summary.skipped;
  };
  for (const version of cgroupVersion() === 1 ? ([1, 2] as const) : ([2] as const)) {
    const lane = `daemons-v${version}`;
    const provides = ['root', 'built', `cgroup-v${version}`, ...(installed.status === 0 ? ['daemons'] : [])];
    if (hasPeers()) provides.push('peers');
    const environment = { STASIS_LANE: lane, STASIS_LANE_PROVIDES: provides.join(',') };
    const ownRun = ['sh', '-c', 'mount -t tmpfs none /run && exec "$@"', 'sh'];
    run(lane, '*.test.js', [...mountsFor(version), ...ownRun], environment);
    const missing = missingForSystemd();
    if (missing !== undefined) {
      console.log(`skipped ${lane}-systemd: there is no ${missing}`);
      total.skipped += 1;
      continue;
    }
    run(`${lane}-systemd`, 'systemd/*.test.js', underSystemd(version), {
      STASIS_LANE: `${lane}-systemd`,
      STASIS_LANE_PROVIDES: [...provides, 'systemd'].join(','),
      STASIS_CGROUP_MANAGER: 'systemd',
    });
  }
  return total;
}

function runSystemd(options: readonly string[]): Summary {
  const missing = missingForSystemd();
  if (missing !== undefined) return skipped('systemd', `there is no ${missing}`);
  const total: Summary = { passed: 0, failed: 0, skipped: 0 };
  for (const version of cgroupVersion() === 1 ? ([1, 2] as const) : ([2] as const)) {
    const lane = `systemd-v${version}`;
    console.log(`\n── ${lane}`);
    const provides = ['root', 'built', `cgroup-v${version}`, 'systemd', ...(hasPeers() ? ['peers'] : [])].join(',');
    const environment = { STASIS_LANE: lane, STASIS_LANE_PROVIDES: provides };
    const summary = runMocha(
      lane,
      [`${compiled}/e2e/systemd/**/*.test.js`],
      options,
      underSystemd(version),
      environment,
    );
    total.passed += summary.passed;
    total.failed += summary.failed;
    total.skipped += summary.skipped;
  }
  return total;
}

function runMocha(
  name: string,
  files: readonly string[],
  options: readonly string[],
  wrapper: readonly string[],
  environment: Record<string, string> = {},
): Summary {
  const summaryFile = join(buildDirectory, 'summaries', `${name}.json`);
  mkdirSync(join(buildDirectory, 'summaries'), { recursive: true });
  rmSync(summaryFile, { force: true });
  const config = files.length === 0 ? [] : ['--no-config', '--timeout', '120000', '--exit', ...files];
  const mocha = [join(repository, 'node_modules/mocha/bin/mocha.js'), ...config, ...options];
  const command = [...wrapper, process.execPath, ...mocha, '--reporter', `${compiled}/hack/mocha-reporter.js`];
  const result = spawnSync(command[0] ?? '', command.slice(1), {
    cwd: repository,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, ...environment, STASIS_SUMMARY_FILE: summaryFile },
  });
  if (!existsSync(summaryFile)) {
    console.log(`group ${name} ended with status ${result.status ?? result.signal} before its tests did`);
    return { passed: 0, failed: 1, skipped: 0 };
  }
  const summary = JSON.parse(readFileSync(summaryFile, 'utf8')) as Summary;
  // A run that fails without a failed test (an error in a file, for example) is a failure all the same.
  return result.status !== 0 && summary.failed === 0 ? { ...summary, failed: 1 } : summary;
}

function runNative(): Summary {
  const result = spawnSync('ctest', ['--test-dir', join(buildDirectory, 'native'), '--output-on-failure'], {
    encoding: 'utf8',
  });
  const text = `${result.stdout}${result.stderr}`;
  process.stdout.write(text);
  const counts = /(\d+) tests failed out of (\d+)/.exec(text);
  if (counts === null) return { passed: 0, failed: 1, skipped: 0 };
  return { passed: Number(counts[2]) - Number(counts[1]), failed: Number(counts[1]), skipped: 0 };
}

function single(name: string, program: string, args: readonly string[]): Summary {
  const result = spawnSync(program, args, { cwd: repository, stdio: ['ignore', 'inherit', 'inherit'] });
  if (result.status !== 0) console.log(`${name} failed`);
  return { passed: result.status === 0 ? 1 : 0, failed: result.status === 0 ? 0 : 1, skipped: 0 };
}

function skipped(name: string, why: string): Summary {
  console.log(`skipped ${name}: ${why}`);
  return { passed: 0, failed: 0, skipped: 1 };
}

function mountsFor(version: 1 | 2): readonly string[] {
  return version === 2 && cgroupVersion() === 1 ? inPureVersion2() : ownMounts;
}

function inPureVersion2(): string[] {
  return ['unshare', '-m', 'sh', '-c', pureVersion2, 'sh'];
}

function underSystemd(version: 1 | 2): string[] {
  return [process.execPath, `${compiled}/hack/systemd-host.js`, String(version)];
}

function missingForSystemd(): string | undefined {
  const missing = ['/lib/systemd/systemd', '/usr/bin/dbus-daemon'].find((program) => !existsSync(program));
  return missing === undefined ? undefined : `${missing} (apt-get install systemd dbus)`;
}

function line(summary: Summary): string {
  return `${summary.passed} passed, ${summary.failed} failed, ${summary.skipped} skipped`;
}

function seconds(startedAt: number): string {
  return `${((performance.now() - startedAt) / 1000).toFixed(0)} s`;
}

main(process.argv.slice(2));

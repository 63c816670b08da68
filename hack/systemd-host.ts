// Runs a command on a machine, as it seems to it, that systemd has booted: real
// systemd as process 1 of a pid namespace, with cgroups, mounts and a /run of
// its own, and a bus. Everything ends with the command.
//   node build/ts/hack/systemd-host.js 1|2 COMMAND...
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories, removeCgroups } from '../e2e/support/cgroups.js';
import { buildDirectory } from '../e2e/support/paths.js';
import { waitFor } from '../e2e/support/wait.js';

const directory = join(buildDirectory, 'systemd-host');
const consoleFile = join(directory, 'console');
const cgroup = `stasis-systemd-${process.pid}`;

const target = 'DefaultDependencies=no\n';
const units: Readonly<Record<string, string>> = {
  'default.target': `[Unit]\n${target}Requires=dbus.socket\nAllowIsolate=yes\n`,
  'dbus.socket': `[Unit]\n${target}[Socket]\nListenStream=/run/dbus/system_bus_socket\n`,
  'dbus.service': `[Unit]\n${target}Requires=dbus.socket\n[Service]\nExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n`,
  // Timers and services that are started on the way want these.
  'sysinit.target': `[Unit]\n${target}`,
  'basic.target': `[Unit]\n${target}`,
  'shutdown.target': `[Unit]\n${target}`,
  // For units that need it.
  'failing.service': `[Unit]\n${target}[Service]\nType=oneshot\nExecStart=/bin/false\n`,
};

// The cgroup namespace makes the cgroups that we are in the roots of all hierarchies that are mounted after it.
const enterVersion1 = `
  for hierarchy in /sys/fs/cgroup/*; do
    mkdir $hierarchy/$CGROUP
    for kind in cpus mems; do
      [ ! -e $hierarchy/cpuset.$kind ] || cat $hierarchy/cpuset.$kind >$hierarchy/$CGROUP/cpuset.$kind
    done
    echo $$ >$hierarchy/$CGROUP/cgroup.procs
  done`;
const mountVersion1 = `
  hierarchies=$(ls /sys/fs/cgroup)
  umount -R -l /sys/fs/cgroup
  mount -t tmpfs -o mode=755 none /sys/fs/cgroup
  for name in $hierarchies; do
    mkdir /sys/fs/cgroup/$name
    case $name in
      unified) mount -t cgroup2 none /sys/fs/cgroup/$name ;;
      systemd) mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/$name ;;
      *) mount -t cgroup -o $name none /sys/fs/cgroup/$name ;;
    esac
  done`;
const enterVersion2 = `
  if ! [ -e /sys/fs/cgroup/cgroup.procs ]; then
    umount -R -l /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
  fi
  mkdir /sys/fs/cgroup/$CGROUP
  echo $$ >/sys/fs/cgroup/$CGROUP/cgroup.procs`;
const mountVersion2 = `
  umount -l /sys/fs/cgroup
  mount -t cgroup2 none /sys/fs/cgroup`;
const boot = `
  mount -t tmpfs -o mode=755 none /run
  mkdir -p /run/lock /run/systemd/system /run/dbus
  mount --bind "$CONSOLE" /dev/console
  exec /lib/systemd/systemd --system --log-target=console --log-level=info --show-status=no`;

async function main([version = '', ...command]: readonly string[]): Promise<number> {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(join(directory, 'units'), { recursive: true });
  for (const [name, text] of Object.entries(units)) writeFileSync(join(directory, 'units', name), text);
  writeFileSync(consoleFile, '');
  const [enter, mount] = version === '1' ? [enterVersion1, mountVersion1] : [enterVersion2, mountVersion2];
  const outer = `set -e;${enter}\nexec unshare -C -p -f --mount-proc --kill-child sh -c "$BOOT"`;
  const errors = openSync(join(directory, 'errors'), 'a');
  // All become each other: the first unshare the shell, and that the second one, whose child is systemd.
  const unshare = spawn('setpriv', ['--pdeathsig', 'KILL', 'unshare', '-m', '-u', '-i', 'sh', '-c', outer], {
    stdio: ['ignore', errors, errors],
    env: {
      PATH: process.env['PATH'],
      CGROUP: cgroup,
      CONSOLE: consoleFile,
      BOOT: `set -e;${mount}${boot}`,
      // None of the host's; transient units are read again when systemd is reloaded.
      SYSTEMD_UNIT_PATH: `/run/systemd/transient:/run/systemd/system.control:${join(directory, 'units')}`,
      container: 'stasis-test',
    },
  });
  try {
    const systemd = await waitFor(
      'systemd to boot',
      () => {
        if (unshare.exitCode !== null) throw new Error(`systemd has not booted: ${said()}`);
        const children = `/proc/${unshare.pid}/task/${unshare.pid}/children`;
        const pid = existsSync(children) ? readFileSync(children, 'utf8').trim() : '';
        return pid !== '' && existsSync(`/proc/${pid}/root/run/systemd/private`) ? pid : undefined;
      },
      { seen: said },
    );
    const inside = ['-t', systemd, '-m', '-u', '-i', '-C', '-p', `--wd=${process.cwd()}`, ...command];
    return spawnSync('nsenter', inside, { stdio: 'inherit' }).status ?? 1;
  } finally {
    const ended = new Promise((resolve) => unshare.once('exit', resolve));
    // A pid namespace ends with its first process, which is told by --kill-child.
    if (unshare.exitCode === null && unshare.kill('SIGKILL')) await ended;
    // Its other processes end after it.
    await waitFor('the cgroups to become empty', () => {
      removeCgroups(cgroup);
      return cgroupDirectories(cgroup).length === 0 ? true : undefined;
    });
  }
}

function said(): string {
  return readFileSync(join(directory, 'errors'), 'utf8') + readFileSync(consoleFile, 'utf8').slice(-500);
}

process.exitCode = await main(process.argv.slice(2));

// What this kernel and these privileges allow, feature by feature, measured
// here and now; and what each missing one costs.
import { accessSync, constants, existsSync } from 'node:fs';
import { findLocations, nativeBinding } from '../nativecore/index.js';
import { capabilityBits } from '../oci-spec/capabilities.js';
import { whyOrdinaryStart } from './own-process.js';
import { findBaseRuntime, readCgroupLayout, readText } from './container/index.js';

export interface HostFeature {
  readonly name: string;
  readonly available: boolean;
  /** Nothing works without it. */
  readonly required: boolean;
  /** What was found, or what is lost. */
  readonly detail: string;
}

export function checkHost(): HostFeature[] {
  const facts = nativeBinding().getKernelFacts();
  const capabilities = effectiveCapabilities();
  const has = (name: string): boolean => (capabilities & capabilityBits([name])) !== 0n;
  const { core } = findLocations();
  return [
    feature('root', process.geteuid?.() === 0, true, 'user 0', 'checkpoint and restore need root'),
    feature(
      'CAP_SYS_ADMIN',
      has('CAP_SYS_ADMIN'),
      true,
      'held',
      'namespaces, mounts and seccomp filters cannot be handled',
    ),
    feature('CAP_SYS_PTRACE', has('CAP_SYS_PTRACE'), true, 'held', 'processes cannot be seized'),
    feature(
      'CAP_CHECKPOINT_RESTORE',
      has('CAP_CHECKPOINT_RESTORE') || has('CAP_SYS_ADMIN'),
      true,
      'held, or implied by CAP_SYS_ADMIN',
      'pids cannot be chosen',
    ),
    feature(
      'CAP_SYS_RESOURCE',
      has('CAP_SYS_RESOURCE'),
      false,
      'held',
      'hard limits above our own cannot be restored, oom_score_adj cannot be lowered',
    ),
    feature('stasis-core', isExecutable(core), true, core, `${core} is not there: run hack/install again`),
    baseRuntime(),
    startImage(),
    feature(
      'CONFIG_CHECKPOINT_RESTORE',
      existsSync('/proc/self/map_files'),
      true,
      '/proc/PID/map_files is there',
      'mapped files cannot be identified',
    ),
    feature('clone3', facts.clone3, true, 'there (set_tid: Linux 5.5)', 'processes cannot get their old pids'),
    feature('kcmp', facts.kcmp, true, 'there', 'shared descriptors cannot be told apart'),
    feature('pidfd_getfd', facts.pidfdGetfd, true, 'there', 'descriptors of other processes cannot be looked at'),
    feature(
      'userfaultfd',
      facts.userfaultfd,
      false,
      'memory is filled from outside, by several threads',
      'memory is filled through /proc/PID/mem, more slowly',
    ),
    feature(
      'PAGEMAP_SCAN',
      facts.pagemapScan,
      false,
      'pages are found by the kernel',
      'pages are found through /proc/PID/pagemap, more slowly',
    ),
    feature(
      'time namespaces',
      existsSync('/proc/self/ns/time'),
      false,
      'there',
      'monotonic clocks cannot be continued on another host',
    ),
    feature(
      'cgroup namespaces',
      existsSync('/proc/self/ns/cgroup'),
      false,
      'there',
      'containers with an own cgroup namespace cannot be restored',
    ),
    cgroups(),
  ];
}

function feature(name: string, available: boolean, required: boolean, found: string, lost: string): HostFeature {
  return { name, available, required, detail: available ? found : lost };
}

function baseRuntime(): HostFeature {
  try {
    return { name: 'base runtime', available: true, required: true, detail: findBaseRuntime().path };
  } catch (error) {
    return { name: 'base runtime', available: false, required: true, detail: (error as Error).message };
  }
}

function startImage(): HostFeature {
  const why = whyOrdinaryStart();
  return feature(
    'start image',
    why === undefined,
    false,
    'our programs start from it',
    `${why}; commands take some 40 ms more each: run "stasis setup"`,
  );
}

function cgroups(): HostFeature {
  try {
    const layout = readCgroupLayout();
    const hybrid = layout.version === 1 && layout.mounts.has('');
    const names = [...layout.mounts.keys()].filter((name) => name !== '');
    return {
      name: 'cgroups',
      available: true,
      required: true,
      detail: layout.version === 2 ? 'v2' : `${hybrid ? 'v1 and an unified tree' : 'v1'}: ${names.join(' ')}`,
    };
  } catch (error) {
    return { name: 'cgroups', available: false, required: true, detail: (error as Error).message };
  }
}

function effectiveCapabilities(): bigint {
  const hex = /^CapEff:\s*([0-9a-f]+)$/m.exec(readText('/proc/self/status'))?.[1];
  return hex === undefined ? 0n : BigInt(`0x${hex}`);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

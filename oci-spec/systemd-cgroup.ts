// Where the systemd cgroup driver puts a container: linux.cgroupsPath is
// "slice:prefix:name" then, and the cgroup is a scope in a slice. runc's rules,
// and crun's, which puts the container one level deeper.
import { FormatError } from './json.js';
import { cgroupPlace } from './libcontainer-config.js';
import { normalize } from './paths.js';
import type { RuntimeConfig } from './runtime-config.js';
import { systemdAnnotations, type UnitProperty } from './systemd-annotations.js';

export interface SystemdCgroup {
  readonly slice: string;
  /** "prefix-name.scope" */
  readonly scope: string;
  /** What `systemctl status` calls it. */
  readonly description: string;
  /** Of the scope, within a hierarchy. */
  readonly scopePath: string;
  /** The container's own: the scope, or a cgroup in it. */
  readonly path: string;
  /** What annotations ask for beyond that. */
  readonly properties: readonly UnitProperty[];
}

const kDefaultSlice = 'system.slice';
const kSuffix = '.slice';
const kSubgroupAnnotation = 'run.oci.systemd.subgroup';

/** Throws FormatError. */
export function systemdCgroup(spec: RuntimeConfig, id: string, family: 'runc' | 'crun'): SystemdCgroup {
  const place = cgroupPlace(spec, id, true);
  const ofCrun = family === 'crun';
  const prefix = ofCrun && (spec.linux?.cgroupsPath ?? '') === '' ? 'crun' : place.scopePrefix;
  if (`${prefix}${place.name}`.includes('/'))
    throw new FormatError('linux.cgroupsPath', `names a unit with a slash in it: "${prefix}-${place.name}"`);
  if (place.name.endsWith(kSuffix))
    throw new FormatError('linux.cgroupsPath', `names a slice, which takes no processes: "${place.name}"`);
  const slice = place.parent === '' ? kDefaultSlice : place.parent;
  const scope = `${prefix}-${place.name}.scope`;
  const above = expandSlice(slice);
  const scopePath = `${above === '/' ? '' : above}/${scope}`;
  return {
    slice,
    scope,
    description: ofCrun ? 'libcrun container' : `libcontainer container ${place.name}`,
    scopePath,
    path: ofCrun ? `${scopePath}${subgroup(spec)}` : scopePath,
    properties: systemdAnnotations(spec.annotations),
  };
}

function subgroup(spec: RuntimeConfig): string {
  const name = spec.annotations[kSubgroupAnnotation] ?? 'container';
  return name === '' ? '' : normalize(`/${name}`);
}

/** "a-b.slice" is in "a.slice": its path has both. "-.slice" is the root. Throws FormatError. */
export function expandSlice(slice: string): string {
  const name = slice.slice(0, -kSuffix.length);
  if (!slice.endsWith(kSuffix) || name === '' || slice.includes('/'))
    throw new FormatError('linux.cgroupsPath', `names no slice: "${slice}"`);
  if (name === '-') return '/';
  const parts = name.split('-');
  if (parts.includes('')) throw new FormatError('linux.cgroupsPath', `names no slice: "${slice}"`);
  return parts.map((_part, index) => `/${parts.slice(0, index + 1).join('-')}${kSuffix}`).join('');
}

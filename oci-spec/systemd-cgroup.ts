// Where the systemd cgroup driver puts a container: linux.cgroupsPath is
// "slice:prefix:name" then, and the cgroup is a scope in a slice. runc's rules.
import { FormatError } from './json.js';
import { cgroupPlace } from './libcontainer-config.js';
import type { RuntimeConfig } from './runtime-config.js';

export interface SystemdCgroup {
  readonly slice: string;
  /** A scope, or a slice if the name is one. */
  readonly unit: string;
  /** Within a hierarchy. */
  readonly path: string;
}

const kDefaultSlice = 'system.slice';
const kSuffix = '.slice';

/** Throws FormatError. */
export function systemdCgroup(spec: RuntimeConfig, id: string): SystemdCgroup {
  const { parent, scopePrefix, name } = cgroupPlace(spec, id, true);
  if (name.includes('/') || scopePrefix.includes('/'))
    throw new FormatError('linux.cgroupsPath', `names a unit with a slash in it: "${scopePrefix}-${name}"`);
  const slice = parent === '' ? kDefaultSlice : parent;
  const unit = name.endsWith(kSuffix) ? name : `${scopePrefix}-${name}.scope`;
  const above = expandSlice(slice);
  return { slice, unit, path: `${above === '/' ? '' : above}/${unit}` };
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

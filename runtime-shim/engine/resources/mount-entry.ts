// The vocabulary of mount entries, for both directions.
import { fstype } from '../../../oci-spec/images/messages.js';

/** MS_* of mount(2). */
export const mountFlag = {
  readOnly: 1,
  noSuid: 2,
  noDev: 4,
  noExec: 8,
  noAtime: 1 << 10,
  noDirAtime: 1 << 11,
  unbindable: 1 << 17,
  private: 1 << 18,
  slave: 1 << 19,
  shared: 1 << 20,
  relAtime: 1 << 21,
  noSymFollow: 1 << 8,
} as const;

/** File systems that a fresh super block of is made; everything else is bound from somewhere. */
export const freshTypes: ReadonlySet<number> = new Set([
  fstype.PROC,
  fstype.SYSFS,
  fstype.TMPFS,
  fstype.DEVPTS,
  fstype.MQUEUE,
  fstype.CGROUP,
  fstype.CGROUP2,
]);

/** Is `path` the directory `above` or inside of it? */
export function isBelow(path: string, above: string): boolean {
  return above === '/' || path === above || path.startsWith(`${above}/`);
}

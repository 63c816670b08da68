// Access control lists as the extended attributes system.posix_acl_access and
// system.posix_acl_default have them (acl(5), uapi/linux/posix_acl_xattr.h): a
// version, then entries of tag, permissions and id, little-endian.

export const kAccessList = 'system.posix_acl_access';
export const kDefaultList = 'system.posix_acl_default';

const kVersion = 2;
const kHeaderBytes = 4;
const kEntryBytes = 8;
const kNoId = 0xffff_ffff;

const tag = { userObject: 0x01, user: 0x02, groupObject: 0x04, group: 0x08, mask: 0x10, other: 0x20 } as const;
/** In the order that the kernel wants. */
const order: readonly number[] = Object.values(tag);

/** undefined: the kernel takes it. */
export function accessListProblem(value: Buffer): string | undefined {
  if (value.length < kHeaderBytes || (value.length - kHeaderBytes) % kEntryBytes !== 0) return 'has a size of no list';
  if (value.readUInt32LE(0) !== kVersion) return `is of version ${value.readUInt32LE(0)}`;
  const seen: number[] = [];
  for (let at = kHeaderBytes; at < value.length; at += kEntryBytes) {
    const [kind, permissions] = [value.readUInt16LE(at), value.readUInt16LE(at + 2)];
    const isNamed = kind === tag.user || kind === tag.group;
    if (!order.includes(kind) || permissions > 7) return 'has an entry of an unknown kind';
    const last = seen.at(-1);
    if (last !== undefined && (order.indexOf(kind) < order.indexOf(last) || (kind === last && !isNamed)))
      return 'has its entries in a wrong order';
    seen.push(kind);
  }
  // Without entries it takes a list away.
  if (seen.length === 0) return undefined;
  if (![tag.userObject, tag.groupObject, tag.other].every((kind) => seen.includes(kind))) return 'is not complete';
  if ((seen.includes(tag.user) || seen.includes(tag.group)) && !seen.includes(tag.mask)) return 'has no mask';
  return undefined;
}

/** What the mode says already: the kernel keeps no list of this, and takes one away that a file inherited. */
export function listOfMode(mode: number): Buffer {
  return formatList([
    [tag.userObject, (mode >> 6) & 7],
    [tag.groupObject, (mode >> 3) & 7],
    [tag.other, mode & 7],
  ]);
}

/** Takes an inherited one away. */
export const noList: Buffer = formatList([]);

function formatList(entries: readonly (readonly [kind: number, permissions: number])[]): Buffer {
  const value = Buffer.alloc(kHeaderBytes + entries.length * kEntryBytes);
  value.writeUInt32LE(kVersion, 0);
  for (const [index, [kind, permissions]] of entries.entries()) {
    const at = kHeaderBytes + index * kEntryBytes;
    value.writeUInt16LE(kind, at);
    value.writeUInt16LE(permissions, at + 2);
    value.writeUInt32LE(kNoId, at + 4);
  }
  return value;
}

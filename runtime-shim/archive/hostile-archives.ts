// For tests: archives as an attacker would make them, byte by byte, because an
// honest tar library refuses to write most of them.
import { createHash } from 'node:crypto';
import { constants, gzipSync, zstdCompressSync } from 'node:zlib';

export interface RawMember {
  readonly name: string | Buffer;
  readonly content?: string | Buffer;
  /** '0' file, '1' hard link, '2' symbolic link, '3' and '4' devices, '5' directory, '6' fifo. */
  readonly type?: string;
  readonly link?: string;
  /** What the header says, whatever the content is. */
  readonly size?: number | Buffer;
  readonly mode?: number;
  readonly device?: readonly [major: number, minor: number];
  /** Pax records before the header. */
  readonly pax?: Readonly<Record<string, string>>;
  readonly damage?: (header: Buffer) => void;
}

export function rawTar(members: readonly RawMember[], end: Buffer = Buffer.alloc(1024)): Buffer {
  return Buffer.concat([...members.flatMap(rawMember), end]);
}

function rawMember(member: RawMember): Buffer[] {
  const content = Buffer.from(member.content ?? '');
  const padding = Buffer.alloc(-content.length & 511);
  const header = rawHeader(member, content.length);
  if (member.pax === undefined) return [header, content, padding];
  const records = Object.entries(member.pax).map(([key, value]) => {
    const rest = Buffer.byteLength(` ${key}=${value}\n`);
    let length = rest + String(rest).length;
    if (rest + String(length).length !== length) length = rest + String(length).length;
    return `${length} ${key}=${value}\n`;
  });
  return [...rawMember({ name: 'PaxHeader', type: 'x', content: records.join('') }), header, content, padding];
}

function rawHeader(member: RawMember, lengthBytes: number): Buffer {
  const header = Buffer.alloc(512);
  Buffer.from(member.name).copy(header, 0, 0, 100);
  const octal = (value: number, at: number, digits: number): void =>
    void header.write(value.toString(8).padStart(digits, '0'), at, 'latin1');
  octal(member.mode ?? 0o644, 100, 7);
  octal(0, 108, 7);
  octal(0, 116, 7);
  if (Buffer.isBuffer(member.size)) member.size.copy(header, 124);
  else octal(member.size ?? lengthBytes, 124, 11);
  octal(0, 136, 11);
  header.write(member.type ?? '0', 156, 'latin1');
  header.write(member.link ?? '', 157, 100, 'utf8');
  header.write('ustar\x0000', 257, 'latin1');
  octal(member.device?.[0] ?? 0, 329, 7);
  octal(member.device?.[1] ?? 0, 337, 7);
  header.fill(' ', 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  member.damage?.(header);
  return header;
}

export const spec = JSON.stringify({ ociVersion: '1.0.2', root: { path: 'rootfs' }, annotations: {} });
export const config = JSON.stringify({ id: 'a', name: 'victim', runtime: 'runc' });

/** A sound one of another manager: without digests. */
export function foreign(...more: readonly RawMember[]): RawMember[] {
  return [
    { name: 'config.dump', content: config },
    { name: 'spec.dump', content: spec },
    { name: 'checkpoint/', type: '5', mode: 0o700 },
    { name: 'checkpoint/inventory.img', content: 'inventory' },
    ...more,
  ];
}

/** A sound one of ours; `manifest` changes what it says. */
export function ours(
  members: readonly RawMember[],
  manifest: (files: Record<string, { size: number; sha256: string }>) => unknown = (files) => ({ version: 1, files }),
): RawMember[] {
  const files: Record<string, { size: number; sha256: string }> = {};
  for (const { name, content, type } of members) {
    if (type !== undefined && type !== '0') continue;
    const bytes = Buffer.from(content ?? '');
    files[String(name)] = { size: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
  }
  return [...members, { name: 'stasis-archive.json', content: JSON.stringify(manifest(files)) }];
}

export interface HostileArchive {
  readonly what: string;
  readonly bytes: Buffer;
  /** In the error. */
  readonly says: RegExp;
  readonly maxBytes?: number;
}

const zeros = (bytes: number): Buffer => Buffer.alloc(bytes);
const file = (name: string | Buffer, content = 'x'): RawMember => ({ name, content });

function plain(what: string, says: RegExp, ...more: readonly RawMember[]): HostileArchive {
  return { what, bytes: rawTar(foreign(...more)), says };
}

/** Archives of checkpoints. */
export function hostileArchives(): HostileArchive[] {
  const sound = rawTar(foreign());
  const mine = foreign();
  return [
    plain('a name that leads out', /leads out of the archive/, file('../evil')),
    plain('a name that leads out from below', /leads out of the archive/, file('checkpoint/../../evil')),
    plain('a name that leads out behind "./"', /leads out of the archive/, file('./../evil')),
    plain('an absolute name', /absolute name/, file('/etc/evil')),
    plain('an absolute name behind "./"', /absolute name/, file('.//etc/evil')),
    plain('an empty part in a name', /empty part/, file('checkpoint//evil.img')),
    plain('a dot as a part of a name', /empty part/, file('checkpoint/./evil.img')),
    plain('a backslash in a name', /backslash/, file('checkpoint\\..\\evil')),
    plain('a newline in a name', /control character/, file('checkpoint/a\nb.img')),
    plain('an escape sequence in a name', /control character/, file('checkpoint/\u001b[2J.img')),
    plain('a name that is not UTF-8', /not UTF-8/, file(Buffer.from([0x63, 0xff, 0xfe, 0x2e, 0x69]))),
    plain('no name', /has no name/, file('./')),
    plain('a name of 2000 bytes', /more than 1024 bytes/, {
      ...file('x'),
      pax: { path: `checkpoint/${'a'.repeat(2000)}` },
    }),
    plain('a part of 300 bytes', /more than 255 bytes/, {
      ...file('x'),
      pax: { path: `checkpoint/${'a'.repeat(300)}` },
    }),
    plain('a name that leads out in a pax record', /leads out/, { ...file('x'), pax: { path: '../../etc/evil' } }),
    plain('a null byte in a pax name', /control character/, { ...file('x'), pax: { path: 'checkpoint/a\0.img' } }),
    plain('an image in a directory of its own', /directory of its own/, file('checkpoint/deep/evil.img')),
    plain('a symbolic link out', /symbolic link to "\/etc"/, { name: 'checkpoint/link', type: '2', link: '/etc' }),
    plain('a symbolic link inside', /symbolic link/, { name: 'artifacts', type: '2', link: 'checkpoint' }),
    {
      what: 'a symbolic link, then a file through it',
      bytes: rawTar([{ name: 'checkpoint', type: '2', link: '/tmp' }, file('checkpoint/inventory.img')]),
      says: /"checkpoint" is a symbolic link/,
    },
    plain('the link of an incremental checkpoint', /make a full one|symbolic link/, {
      name: 'checkpoint/parent',
      type: '2',
      link: '../pre-checkpoint',
    }),
    plain('a hard link out', /hard link to "\/etc\/shadow"/, {
      name: 'checkpoint/core-1.img',
      type: '1',
      link: '/etc/shadow',
    }),
    plain('a hard link inside', /hard link/, { name: 'copy', type: '1', link: 'config.dump' }),
    plain('a character device', /is a device/, { name: 'checkpoint/mem', type: '3', device: [1, 1] }),
    plain('a block device', /is a device/, { name: 'disk', type: '4', device: [8, 0] }),
    plain('a named pipe', /named pipe/, { name: 'checkpoint/pipe', type: '6' }),
    plain('a member of an unknown kind', /unknown kind/, { name: 'odd', type: 'Z' }),
    plain('a GNU sparse file', /unknown kind/, { name: 'checkpoint/pages-1.img', type: 'S', content: 'x' }),
    plain('a pax sparse file', /sparse/, { ...file('checkpoint/pages-1.img'), pax: { 'GNU.sparse.size': '99999999' } }),
    plain(
      'two members of one name',
      /is there twice/,
      file('checkpoint/core-1.img'),
      file('checkpoint/core-1.img', 'y'),
    ),
    plain('two of one name in two spellings', /is there twice/, file('./config.dump', config)),
    plain('a file where a directory was', /is there twice/, file('checkpoint', 'x')),
    plain('a file below a file', /lies below "volumes", which is a file/, file('volumes'), file('volumes/a.tar')),
    plain('a directory with content', /Invalid|content|checksum|corrupt|ends/i, {
      name: 'artifacts/',
      type: '5',
      content: zeros(512).toString(),
    }),
    plain('a size of 8 GiB without content', /ends in the middle|ends too early|at most/, {
      name: 'checkpoint/pages-1.img',
      size: 8 * 2 ** 30 - 1,
    }),
    {
      what: 'a size of exabytes',
      bytes: rawTar(foreign({ name: 'checkpoint/pages-1.img', size: Buffer.from('80000000003fffffffffffff', 'hex') })),
      says: /impossible size|at most/,
      maxBytes: 1 << 30,
    },
    plain('a negative size', /impossible size|Invalid|corrupt/i, {
      name: 'checkpoint/pages-1.img',
      size: Buffer.from('ffffffffffffffffffffffff', 'hex'),
    }),
    plain('a size in a pax record that is no number', /impossible size|Invalid/i, {
      ...file('checkpoint/a.img'),
      pax: { size: '0x7fffffffffff' },
    }),
    {
      what: 'more than is allowed',
      bytes: rawTar(foreign({ name: 'checkpoint/pages-1.img', content: zeros(4096) })),
      says: /member "checkpoint\/pages-1.img" its contents come to \d+ bytes, and at most 1024/,
      maxBytes: 1024,
    },
    {
      what: 'a gzip bomb behind the end',
      bytes: gzipSync(Buffer.concat([sound, zeros(64 << 20)])),
      says: /goes on without end/,
    },
    {
      what: 'a zstd bomb behind the end',
      bytes: zstdCompressSync(Buffer.concat([sound, zeros(64 << 20)])),
      says: /goes on without end/,
    },
    {
      what: 'a bomb as page data',
      bytes: zstdCompressSync(rawTar(foreign({ name: 'checkpoint/pages-1.img', content: zeros(32 << 20) }))),
      says: /at most 1048576 are allowed/,
      maxBytes: 1 << 20,
    },
    {
      what: 'a spec of 65 MiB',
      bytes: gzipSync(rawTar([{ name: 'spec.dump', content: zeros(65 << 20) }])),
      says: /"spec.dump" has \d+ bytes, more than any may have/,
    },
    {
      what: 'a zstd window of 2 GiB',
      bytes: Buffer.concat([Buffer.from('28b52ffd00a8', 'hex'), zeros(64)]),
      says: /damaged or cut short/,
    },
    {
      what: 'an end in the middle of a member',
      bytes: sound.subarray(0, 512 * 3 + 100),
      says: /ends in the middle|ends too early/,
    },
    { what: 'an end without its marker', bytes: rawTar(foreign(), Buffer.alloc(0)), says: /ends too early/ },
    {
      what: 'compressed data that is cut short',
      bytes: gzipSync(sound).subarray(0, -20),
      says: /damaged or cut short/,
    },
    { what: 'zstd data that is cut short', bytes: zstdCompressSync(sound).subarray(0, -9), says: /cut short/ },
    {
      what: 'zstd data that is cut short between blocks',
      bytes: zstdCompressSync(sound).subarray(0, 12),
      says: /cut short/,
    },
    {
      what: 'zstd data with something else behind it',
      bytes: Buffer.concat([zstdCompressSync(sound), Buffer.from('#!/bin/sh\n')]),
      says: /something else follows/,
    },
    {
      what: 'a zstd block of an unknown kind',
      bytes: Buffer.concat([zstdCompressSync(sound).subarray(0, 6), Buffer.from('070000', 'hex'), zeros(64)]),
      says: /unknown kind|damaged/,
    },
    {
      what: 'compressed data with a flipped bit',
      bytes: flip(zstdCompressSync(sound, { params: { [constants.ZSTD_c_checksumFlag]: 1 } })),
      says: /damaged|corrupt|malformed|Invalid/i,
    },
    { what: 'nothing at all', bytes: Buffer.alloc(0), says: /it is empty/ },
    { what: 'no members', bytes: zeros(10240), says: /has no members/ },
    {
      what: 'something else altogether',
      bytes: Buffer.from('#!/bin/sh\nrm -rf /\n'.repeat(100)),
      says: /Invalid tar header|unknown/,
    },
    { what: 'xz', bytes: Buffer.from('fd377a585a00', 'hex'), says: /compressed with xz/ },
    {
      what: 'a damaged header',
      bytes: rawTar(foreign({ ...file('checkpoint/core-1.img'), damage: (header) => void header.write('Z', 0) })),
      says: /Invalid tar header/,
    },
    {
      what: 'no inventory',
      bytes: rawTar([
        { name: 'config.dump', content: config },
        { name: 'spec.dump', content: spec },
      ]),
      says: /"checkpoint\/inventory.img" is missing/,
    },
    {
      what: 'an altered member',
      bytes: rawTar(
        ours(mine, (files) => ({
          version: 1,
          files: { ...files, 'spec.dump': { size: spec.length, sha256: '0'.repeat(64) } },
        })),
      ),
      says: /"spec.dump" is not the file that was written/,
    },
    {
      what: 'a member of another length',
      bytes: rawTar(
        ours(mine, (files) => ({ version: 1, files: { ...files, 'spec.dump': { size: 1, sha256: '0'.repeat(64) } } })),
      ),
      says: /"spec.dump" has \d+ bytes, the manifest says 1/,
    },
    {
      what: 'a missing member',
      bytes: rawTar(
        ours(mine, (files) => ({
          version: 1,
          files: { ...files, 'checkpoint/core-1.img': { size: 1, sha256: '0'.repeat(64) } },
        })),
      ),
      says: /"checkpoint\/core-1.img" is missing/,
    },
    {
      what: 'a member that was put in',
      bytes: rawTar(
        ours(foreign(file('checkpoint/core-9.img')), (files) => {
          const { ['checkpoint/core-9.img']: _gone, ...rest } = files;
          return { version: 1, files: rest };
        }),
      ),
      says: /"checkpoint\/core-9.img" is not in stasis-archive.json/,
    },
    { what: 'a member after the digests', bytes: rawTar([...ours(mine), file('late')]), says: /"late" comes after/ },
    {
      what: 'a manifest of another version',
      bytes: rawTar(ours(mine, (files) => ({ version: 99, files }))),
      says: /stasis-archive.json": version is 99/,
    },
    {
      what: 'a manifest without digests',
      bytes: rawTar(ours(mine, () => ({ version: 1, files: { 'spec.dump': { size: 3, sha256: 'no' } } }))),
      says: /no sha256/,
    },
    plain(
      'deleted files that lead out',
      /deleted.files names "\/..\/etc\/passwd", which leads out/,
      file('deleted.files', '["/../etc/passwd"]'),
    ),
    plain('deleted files that are relative', /is not absolute/, file('deleted.files', '["etc/passwd"]')),
    plain('the root as a deleted file', /is the root itself/, file('deleted.files', '["/"]')),
    plain('deleted files with a dot', /empty part/, file('deleted.files', '["/a/./b"]')),
    plain('deleted files that are no list', /deleted.files/, file('deleted.files', '{"/etc": 1}')),
    plain('deleted files that are no JSON', /is not JSON/, file('deleted.files', '["/etc"')),
    {
      what: 'a config.dump that is no object',
      bytes: rawTar([{ name: 'config.dump', content: '[]' }, ...foreign().slice(1)]),
      says: /config.dump": .*must be an object/,
    },
    {
      what: 'poisoned annotations',
      bytes: rawTar([
        { name: 'spec.dump', content: '{"annotations":{"io.container.manager":{"$ne":1}}}' },
        foreign()[0]!,
        ...foreign().slice(2),
      ]),
      says: /spec.dump": annotations.io.container.manager must be a string/,
    },
  ];
}

function flip(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  copy[copy.length >> 1]! ^= 0x10;
  return copy;
}

/** Changes of a root file system that has the links "out" -> outside, "dirlink" -> "dir", the file "f" and the directory "dir". */
export function hostileRootfs(): HostileArchive[] {
  const one = (what: string, says: RegExp, ...members: readonly RawMember[]): HostileArchive => ({
    what,
    bytes: rawTar([file('dir/first'), ...members]),
    says,
  });
  return [
    one('a name that leads out', /leads out of the root file system/, file('../evil')),
    one('an absolute name', /absolute name/, file('/etc/evil')),
    one('a file through a link of the tree', /lies below "out", which is not a directory/, file('out/evil')),
    one('a deep file through a link of the tree', /lies below "out"/, file('out/a/b/evil')),
    one('a file through a link inside of the tree', /lies below "dirlink"/, file('dirlink/evil')),
    one(
      'a file through a link of its own',
      /lies below "l", which is not a directory/,
      { name: 'l', type: '2', link: '/tmp' },
      file('l/evil'),
    ),
    one('an access control list that is none', /access control list that has a size of no list/, {
      ...file('f'),
      pax: { 'SCHILY.xattr.system.posix_acl_access': 'junk!' },
    }),
    one('a file below a file', /lies below "f"/, file('f/evil')),
    one('a hard link out', /hard link to "\/etc\/shadow"|hard link out/, { name: 'h', type: '1', link: '/etc/shadow' }),
    one('a hard link that leads out', /hard link out/, { name: 'h', type: '1', link: '../outside/secret' }),
    one('a hard link to a file of the tree', /no earlier file/, { name: 'h', type: '1', link: 'f' }),
    one(
      'a hard link to a link',
      /no earlier file/,
      { name: 'l', type: '2', link: '/etc/shadow' },
      { name: 'h', type: '1', link: 'l' },
    ),
    one(
      'a hard link to a device',
      /no earlier file/,
      { name: 'mem', type: '3', device: [1, 1] },
      { name: 'h', type: '1', link: 'mem' },
    ),
    one('a file below a named pipe', /lies below "p"/, { name: 'p', type: '6' }, file('p/evil')),
    one('a file below a device', /lies below "mem"/, { name: 'mem', type: '3', device: [1, 1] }, file('mem/evil')),
    one('an attribute without a name', /attribute that no kernel takes/, {
      ...file('a'),
      pax: { 'SCHILY.xattr.': 'x' },
    }),
    one('an attribute with a name of 300 bytes', /attribute that no kernel takes/, {
      ...file('a'),
      pax: { [`SCHILY.xattr.user.${'a'.repeat(300)}`]: 'x' },
    }),
    one('an attribute of 70000 bytes', /attribute that no kernel takes/, {
      ...file('a'),
      pax: { 'SCHILY.xattr.user.a': 'x'.repeat(70_000) },
    }),
    one('an owner of 2^32 - 1, which chown(2) takes for "as it is"', /impossible uid/, {
      ...file('a'),
      pax: { uid: '4294967295' },
    }),
    one('one name twice', /is there twice/, file('a'), file('a')),
    one(
      'a link over an earlier directory',
      /is there twice/,
      { name: 'd/', type: '5' },
      { name: 'd', type: '2', link: '/' },
    ),
    one('a name that is not UTF-8', /not UTF-8/, file(Buffer.from([0x61, 0xff]))),
    one('a symbolic link to nowhere', /link to nowhere/, { name: 'l', type: '2', link: '' }),
    {
      what: 'an end in the middle',
      bytes: rawTar([file('dir/first')]).subarray(0, 600),
      says: /ends in the middle|ends too early/,
    },
  ];
}

// Just enough of tar(5) for the content of a tmpfs: written as ustar with pax
// records where a name, number or attribute does not fit; read as ustar, pax
// and GNU (long names, sparse files), the forms that checkpoints hold. Every
// length is checked against the bytes that are there. No I/O.

export interface TarEntry {
  /** As in the archive, without "./" and a trailing slash; "" is the root. Bytes, because names need not be UTF-8. */
  readonly name: Buffer;
  readonly type: TarType;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  readonly sizeBytes: number;
  readonly content: Uint8Array;
  /** Where content lies in a sparse file; one run from 0 otherwise. */
  readonly runs: readonly TarRun[];
  readonly linkName: Buffer;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  readonly attributes: ReadonlyMap<string, Buffer>;
}
export interface TarRun {
  readonly offset: number;
  readonly bytes: Uint8Array;
}
export type TarType = 'file' | 'link' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo';

export class TarError extends Error {}

const kBlock = 512;
const kMaxEntries = 1_000_000;
const typeFlags: Readonly<Record<TarType, string>> = {
  file: '0',
  link: '1',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
};
const typeOfFlag = new Map<string, TarType>([
  ['\0', 'file'],
  ['7', 'file'],
  ['S', 'file'],
  ...(Object.entries(typeFlags) as [TarType, string][]).map(([type, flag]): [string, TarType] => [flag, type]),
]);
const kAttributePrefix = 'SCHILY.xattr.';
const kNsPerSecond = 1_000_000_000n;

export type NewTarEntry = Omit<TarEntry, 'runs' | 'sizeBytes'>;

export function writeTar(entries: readonly NewTarEntry[]): Buffer {
  const parts: Uint8Array[] = [];
  const add = (header: Buffer, body: Uint8Array): void => {
    parts.push(header, body, Buffer.alloc(-body.length & (kBlock - 1)));
  };
  for (const entry of entries) {
    const name = Buffer.concat([
      Buffer.from('./'),
      entry.name,
      Buffer.from(entry.type === 'directory' && entry.name.length > 0 ? '/' : ''),
    ]);
    const pax = paxRecords(entry, name);
    if (pax.length > 0)
      add(header({ ...entry, linkName: Buffer.alloc(0) }, Buffer.from('./PaxHeaders'), 'x', pax.length), pax);
    add(header(entry, name, typeFlags[entry.type], entry.content.length), entry.content);
  }
  parts.push(Buffer.alloc(2 * kBlock));
  return Buffer.concat(parts);
}

const kMaxOctal8 = 0o7777777;

function paxRecords(entry: NewTarEntry, name: Buffer): Buffer {
  const records: Buffer[] = [];
  const add = (key: string, value: Buffer): void => {
    const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from('\n')]);
    // The length counts its own digits.
    let length = rest.length + 1;
    while (`${length}`.length + rest.length !== length) length = `${length}`.length + rest.length;
    records.push(Buffer.from(`${length}`), rest);
  };
  if (name.length > 100) add('path', name);
  if (entry.linkName.length > 100) add('linkpath', entry.linkName);
  if (entry.uid > kMaxOctal8) add('uid', Buffer.from(`${entry.uid}`));
  if (entry.gid > kMaxOctal8) add('gid', Buffer.from(`${entry.gid}`));
  const fraction = entry.mtimeNs % kNsPerSecond;
  if (fraction !== 0n && entry.mtimeNs > 0n)
    add('mtime', Buffer.from(`${entry.mtimeNs / kNsPerSecond}.${fraction.toString().padStart(9, '0')}`));
  for (const [key, value] of entry.attributes) add(`${kAttributePrefix}${key}`, value);
  return Buffer.concat(records);
}

function header(entry: NewTarEntry, name: Buffer, flag: string, size: number): Buffer {
  const block = Buffer.alloc(kBlock);
  const octal = (value: number, at: number, digits: number): void => {
    block.write(Math.max(0, value).toString(8).padStart(digits, '0').slice(-digits), at, 'latin1');
  };
  name.copy(block, 0, 0, Math.min(name.length, 100));
  octal(entry.mode & 0o7777, 100, 7);
  octal(entry.uid, 108, 7);
  octal(entry.gid, 116, 7);
  octal(size, 124, 11);
  octal(Number(entry.mtimeNs / kNsPerSecond), 136, 11);
  block.write('        ', 148, 'latin1');
  block.write(flag, 156, 'latin1');
  entry.linkName.copy(block, 157, 0, Math.min(entry.linkName.length, 100));
  block.write('ustar\x0000', 257, 'latin1');
  octal(entry.deviceMajor, 329, 7);
  octal(entry.deviceMinor, 337, 7);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

export function readTar(bytes: Uint8Array): TarEntry[] {
  return new TarReader(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)).read();
}

class TarReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  read(): TarEntry[] {
    const entries: TarEntry[] = [];
    let pax = new Map<string, Buffer>();
    let longName: Buffer | undefined;
    let longLink: Buffer | undefined;
    for (;;) {
      // An archive ends with blocks of zeros: one without has lost its end.
      if (this.#at + kBlock > this.#bytes.length) throw new TarError('ends without its end mark');
      const block = this.#bytes.subarray(this.#at, this.#at + kBlock);
      if (block.every((byte) => byte === 0)) break;
      checkSum(block, this.#at);
      this.#at += kBlock;
      const flag = block.toString('latin1', 156, 157);
      const size = number(block, 124, 12, pax.get('size'));
      if (flag === 'x' || flag === 'g') {
        const records = parsePax(this.#take(size));
        if (flag === 'x') pax = records;
        continue;
      }
      if (flag === 'L') {
        longName = untilNul(this.#take(size));
        continue;
      }
      if (flag === 'K') {
        longLink = untilNul(this.#take(size));
        continue;
      }
      if (entries.length >= kMaxEntries) throw new TarError(`holds more than ${kMaxEntries} files`);
      entries.push(this.#entry(block, flag, size, pax, longName, longLink));
      pax = new Map();
      longName = undefined;
      longLink = undefined;
    }
    return entries;
  }

  #entry(
    block: Buffer,
    flag: string,
    size: number,
    pax: ReadonlyMap<string, Buffer>,
    longName: Buffer | undefined,
    longLink: Buffer | undefined,
  ): TarEntry {
    const type = typeOfFlag.get(flag);
    if (type === undefined) throw new TarError(`holds a member of unknown type "${flag}"`);
    const map = flag === 'S' ? this.#sparseMap(block) : undefined;
    const hasContent = type === 'file';
    const content = hasContent ? this.#take(size) : Buffer.alloc(0);
    const prefix =
      block.toString('latin1', 257, 263) === 'ustar\0' ? untilNul(block.subarray(345, 500)) : Buffer.alloc(0);
    const plain = untilNul(block.subarray(0, 100));
    const own = prefix.length > 0 ? Buffer.concat([prefix, Buffer.from('/'), plain]) : plain;
    const attributes = new Map<string, Buffer>();
    for (const [key, value] of pax)
      if (key.startsWith(kAttributePrefix)) attributes.set(key.slice(kAttributePrefix.length), value);
    return {
      name: cleanName(pax.get('path') ?? longName ?? own),
      type,
      mode: number(block, 100, 8) & 0o7777,
      uid: number(block, 108, 8, pax.get('uid')),
      gid: number(block, 116, 8, pax.get('gid')),
      mtimeNs: paxTime(pax.get('mtime')) ?? BigInt(number(block, 136, 12)) * kNsPerSecond,
      content,
      sizeBytes: map?.sizeBytes ?? content.length,
      runs: map === undefined ? [{ offset: 0, bytes: content }] : runsOf(map, content),
      linkName: pax.get('linkpath') ?? longLink ?? untilNul(block.subarray(157, 257)),
      deviceMajor: type === 'character' || type === 'block' ? number(block, 329, 8) : 0,
      deviceMinor: type === 'character' || type === 'block' ? number(block, 337, 8) : 0,
      attributes,
    };
  }

  #take(size: number): Buffer {
    const end = this.#at + size;
    if (end > this.#bytes.length)
      throw new TarError(`ends inside a member (at byte ${this.#bytes.length}, wanted ${end})`);
    const bytes = this.#bytes.subarray(this.#at, end);
    this.#at = end + (-size & (kBlock - 1));
    return bytes;
  }

  /** Old GNU sparse: four pairs in the header, 21 in each further block. */
  #sparseMap(block: Buffer): SparseMap {
    const pairs: { offset: number; length: number }[] = [];
    const collect = (from: Buffer, at: number, count: number): void => {
      for (let index = 0; index < count; index++) {
        const start = at + 24 * index;
        if (from[start] === 0) return;
        pairs.push({ offset: number(from, start, 12), length: number(from, start + 12, 12) });
      }
    };
    collect(block, 386, 4);
    let more = block[482] !== 0;
    while (more) {
      const extension = this.#take(kBlock);
      collect(extension, 0, 21);
      more = extension[504] !== 0;
    }
    return { sizeBytes: number(block, 483, 12), pairs };
  }
}

interface SparseMap {
  readonly sizeBytes: number;
  readonly pairs: readonly { readonly offset: number; readonly length: number }[];
}

function runsOf(map: SparseMap, content: Buffer): TarRun[] {
  let at = 0;
  return map.pairs.map(({ offset, length }) => {
    if (at + length > content.length || offset + length > map.sizeBytes)
      throw new TarError('holds a sparse file whose map does not fit');
    const bytes = content.subarray(at, at + length);
    at += length;
    return { offset, bytes };
  });
}

function checkSum(block: Buffer, at: number): void {
  let sum = 0;
  for (let index = 0; index < kBlock; index++) sum += index >= 148 && index < 156 ? 0x20 : (block[index] ?? 0);
  if (sum !== number(block, 148, 8)) throw new TarError(`is damaged at byte ${at} (checksum)`);
}

/** Octal text, or base 256 when the first bit is set. */
function number(block: Buffer, at: number, length: number, override?: Buffer): number {
  let value: number;
  if (override !== undefined) value = Number(override.toString('latin1'));
  else if (((block[at] ?? 0) & 0x80) !== 0) {
    value = (block[at] ?? 0) & 0x7f;
    for (let index = 1; index < length; index++) value = value * 256 + (block[at + index] ?? 0);
  } else {
    const text = block
      .toString('latin1', at, at + length)
      .replace(/\0.*$/s, '')
      .trim();
    value = text === '' ? 0 : /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : Number.NaN;
  }
  if (!Number.isSafeInteger(value) || value < 0) throw new TarError('holds an impossible number');
  return value;
}

function untilNul(bytes: Buffer): Buffer {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

function cleanName(name: Buffer): Buffer {
  let start = 0;
  while (name[start] === 0x2e && name[start + 1] === 0x2f) start += 2;
  let end = name.length;
  while (end > start && name[end - 1] === 0x2f) end -= 1;
  const clean = name.subarray(start, end);
  return clean.length === 1 && clean[0] === 0x2e ? Buffer.alloc(0) : clean;
}

/** "<length> <key>=<value>\n" */
function parsePax(bytes: Buffer): Map<string, Buffer> {
  const records = new Map<string, Buffer>();
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 ? Number.NaN : Number(bytes.toString('latin1', at, space));
    if (!Number.isSafeInteger(length) || length <= space - at + 1 || at + length > bytes.length)
      throw new TarError('holds a damaged pax record');
    const record = bytes.subarray(space + 1, at + length - 1);
    const equals = record.indexOf(0x3d);
    if (equals > 0) records.set(record.toString('utf8', 0, equals), record.subarray(equals + 1));
    at += length;
  }
  return records;
}

function paxTime(value: Buffer | undefined): bigint | undefined {
  const match = /^(\d{1,12})(?:\.(\d+))?$/.exec(value?.toString('latin1') ?? '');
  if (match === null) return undefined;
  return BigInt(match[1] ?? 0) * kNsPerSecond + BigInt((match[2] ?? '').padEnd(9, '0').slice(0, 9));
}

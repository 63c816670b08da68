// Readers of /proc texts as the capture carries them (proc(5)). No I/O.

/** What the kernel has printed; a name in it may be no UTF-8. A capture's bytes are buffers: a view less for each. */
export const textOf = (bytes: Uint8Array): string =>
  (bytes instanceof Buffer ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)).toString('utf8');

/** /proc/PID/stat. Fields are numbered as in proc_pid_stat(5), from 1. */
export class ProcStat {
  readonly comm: string;
  readonly #fields: readonly string[];

  constructor(bytes: Uint8Array) {
    const line = textOf(bytes);
    // comm may contain spaces and parentheses: the last ')' ends it
    const open = line.indexOf('(');
    const close = line.lastIndexOf(')');
    this.comm = line.slice(open + 1, close);
    this.#fields = line
      .slice(close + 2)
      .trim()
      .split(' ');
  }

  field(number: number): string {
    return this.#fields[number - 3] ?? '0';
  }
  big(number: number): bigint {
    return BigInt(this.field(number));
  }
  get state(): string {
    return this.field(3);
  }
}

/** /proc/PID/status. Searched as it is: of its sixty lines five are asked for. */
export class ProcStatus {
  readonly #text: string;

  constructor(bytes: Uint8Array) {
    this.#text = `\n${textOf(bytes)}`;
  }

  get(key: string): string | undefined {
    const label = `\n${key}:`;
    const at = this.#text.indexOf(label);
    return at < 0 ? undefined : this.#text.slice(at + label.length, endOfLine(this.#text, at + label.length)).trim();
  }
  numbers(key: string): number[] {
    const value = this.get(key);
    return value === undefined || value === '' ? [] : value.split(/\s+/).map(Number);
  }
  /** A mask printed in hexadecimal (SigBlk, CapEff). */
  mask(key: string): bigint {
    const value = this.get(key);
    return value === undefined ? 0n : BigInt(`0x${value}`);
  }
}

/** One mapping of /proc/PID/smaps. */
export interface SmapsEntry {
  readonly start: bigint;
  readonly end: bigint;
  /** "rw-p" */
  readonly permissions: string;
  readonly offset: bigint;
  /** major << 20 | minor */
  readonly device: bigint;
  readonly inode: bigint;
  readonly name: string;
  /** Two-letter VmFlags. */
  readonly flags: ReadonlySet<string>;
  readonly protectionKey: number;
}

/** Of the space behind "rw-p", from the one before it. */
const kAfterPermissions = 5;
const kSpace = 0x20;
const kFile = /^([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)\s*(.*)$/;
/** What follows the range of unnamed memory, which most mappings are. */
const kNoFile = '00000000 00:00 0 ';
const kNoFlags: ReadonlySet<string> = new Set();
const kFlagsLine = 'VmFlags:';
const kKeyLine = 'ProtectionKey:';

/**
 * Two dozen lines per mapping, of which three say something here. VmFlags is the last of them, for every mapping (Linux
 * 3.8): so it goes from one to the next by searches of the engine's own, and makes no strings of the others.
 */
export function parseSmaps(bytes: Uint8Array, flagSets: Map<string, ReadonlySet<string>> = new Map()): SmapsEntry[] {
  const smaps = textOf(bytes);
  const entries: SmapsEntry[] = [];
  let flagsAt = findLine(smaps, kFlagsLine, 0);
  let keyAt = findLine(smaps, kKeyLine, 0);
  for (let at = 0; at < smaps.length;) {
    const start = at;
    const lineEnd = endOfLine(smaps, start);
    at = lineEnd + 1;
    const dash = smaps.indexOf('-', start);
    const space = smaps.indexOf(' ', start);
    // "7f0000000000-7f0000001000 rw-p ", as no other line begins: those have a name and a colon.
    if (dash < 0 || dash > space || space > lineEnd || smaps.charCodeAt(space + kAfterPermissions) !== kSpace) continue;
    const restAt = space + kAfterPermissions + 1;
    const hasFile = lineEnd - restAt !== kNoFile.length || !smaps.startsWith(kNoFile, restAt);
    const file = hasFile ? kFile.exec(smaps.slice(restAt, lineEnd)) : null;
    if (hasFile && file === null) continue;
    if (flagsAt >= 0 && flagsAt < lineEnd) flagsAt = findLine(smaps, kFlagsLine, lineEnd);
    if (keyAt >= 0 && keyAt < lineEnd) keyAt = findLine(smaps, kKeyLine, lineEnd);
    let flags = kNoFlags;
    if (flagsAt >= 0) {
      at = endOfLine(smaps, flagsAt) + 1;
      flags = flagsOf(flagSets, smaps.slice(flagsAt + kFlagsLine.length, at - 1));
    }
    const hasKey = keyAt >= 0 && (flagsAt < 0 || keyAt < at);
    entries.push({
      start: hexadecimal(smaps.slice(start, dash)),
      end: hexadecimal(smaps.slice(dash + 1, space)),
      permissions: smaps.slice(space + 1, space + kAfterPermissions),
      offset: file === null ? 0n : hexadecimal(file[1] ?? ''),
      device: file === null ? 0n : (hexadecimal(file[2] ?? '') << 20n) | hexadecimal(file[3] ?? ''),
      inode: file === null ? 0n : BigInt(file[4] ?? ''),
      name: file?.[5] ?? '',
      flags,
      protectionKey: hasKey ? Number(smaps.slice(keyAt + kKeyLine.length, endOfLine(smaps, keyAt))) : 0,
    });
  }
  return entries;
}

/** Where a line begins with this word; a name may have it, too. */
function findLine(lines: string, word: string, from: number): number {
  let at = lines.indexOf(word, from);
  while (at > 0 && lines.charCodeAt(at - 1) !== kNewline) at = lines.indexOf(word, at + 1);
  return at;
}
const kNewline = 0x0a;

function endOfLine(lines: string, from: number): number {
  const end = lines.indexOf('\n', from);
  return end < 0 ? lines.length : end;
}

/** Those of mappings that have the same ones are one object. */
function flagsOf(known: Map<string, ReadonlySet<string>>, words: string): ReadonlySet<string> {
  let flags = known.get(words);
  if (flags === undefined) {
    flags = new Set(words.trim().split(/\s+/));
    known.set(words, flags);
  }
  return flags;
}

/** Up to 52 bits by way of a number, which is quicker. */
const hexadecimal = (digits: string): bigint =>
  BigInt(digits.length <= 13 ? Number.parseInt(digits, 16) : `0x${digits}`);

/** /proc/PID/fdinfo/N: "key:\tvalue" lines; repeated keys (tfd, inotify) keep all their lines. */
export function parseFdinfo(bytes: Uint8Array): ReadonlyMap<string, readonly string[]> {
  const table = new Map<string, string[]>();
  for (const line of textOf(bytes).split('\n')) {
    const colon = line.indexOf(':');
    if (colon <= 0) continue;
    const key = line.slice(0, colon);
    const value = line.slice(colon + 1).trim();
    const values = table.get(key);
    if (values === undefined) table.set(key, [value]);
    else values.push(value);
  }
  return table;
}

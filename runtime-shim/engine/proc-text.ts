// Readers of /proc texts as the capture carries them (proc(5)). No I/O.

const text = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');

/** /proc/PID/stat. Fields are numbered as in proc_pid_stat(5), from 1. */
export class ProcStat {
  readonly comm: string;
  readonly #fields: readonly string[];

  constructor(bytes: Uint8Array) {
    const line = text(bytes);
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

/** /proc/PID/status as a table. */
export class ProcStatus {
  readonly #lines = new Map<string, string>();

  constructor(bytes: Uint8Array) {
    for (const line of text(bytes).split('\n')) {
      const colon = line.indexOf(':');
      if (colon > 0) this.#lines.set(line.slice(0, colon), line.slice(colon + 1).trim());
    }
  }

  get(key: string): string | undefined {
    return this.#lines.get(key);
  }
  numbers(key: string): number[] {
    const value = this.#lines.get(key);
    return value === undefined || value === '' ? [] : value.split(/\s+/).map(Number);
  }
  /** A mask printed in hexadecimal (SigBlk, CapEff). */
  mask(key: string): bigint {
    const value = this.#lines.get(key);
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

const kRange = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) /;
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
export function parseSmaps(bytes: Uint8Array): SmapsEntry[] {
  const smaps = text(bytes);
  const entries: SmapsEntry[] = [];
  const flagSets = new Map<string, ReadonlySet<string>>();
  let flagsAt = findLine(smaps, kFlagsLine, 0);
  let keyAt = findLine(smaps, kKeyLine, 0);
  for (let at = 0; at < smaps.length;) {
    const lineEnd = endOfLine(smaps, at);
    const line = smaps.slice(at, lineEnd);
    at = lineEnd + 1;
    const range = kRange.exec(line);
    if (range === null) continue;
    const rest = line.slice(range[0].length);
    const file = rest === kNoFile ? null : kFile.exec(rest);
    if (file === null && rest !== kNoFile) continue;
    if (flagsAt >= 0 && flagsAt < lineEnd) flagsAt = findLine(smaps, kFlagsLine, lineEnd);
    if (keyAt >= 0 && keyAt < lineEnd) keyAt = findLine(smaps, kKeyLine, lineEnd);
    let flags = kNoFlags;
    if (flagsAt >= 0) {
      at = endOfLine(smaps, flagsAt) + 1;
      flags = flagsOf(flagSets, smaps.slice(flagsAt + kFlagsLine.length, at - 1));
    }
    const hasKey = keyAt >= 0 && (flagsAt < 0 || keyAt < at);
    entries.push({
      start: hexadecimal(range[1] ?? ''),
      end: hexadecimal(range[2] ?? ''),
      permissions: range[3] ?? '----',
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
  for (const line of text(bytes).split('\n')) {
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

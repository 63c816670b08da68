// Readers of /proc texts as the capture carries them (proc(5)). No I/O.

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf8');

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

const kHeader = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)\s*(.*)$/;

const kZero = 0x30;
const kNine = 0x39;
const kLowerA = 0x61;

export function parseSmaps(bytes: Uint8Array): SmapsEntry[] {
  const entries: { -readonly [Key in keyof SmapsEntry]: SmapsEntry[Key] }[] = [];
  for (const line of text(bytes).split('\n')) {
    // two dozen lines per mapping: only its header begins with a (lower case) address
    const first = line.charCodeAt(0);
    const isHeader = (first >= kZero && first <= kNine) || first >= kLowerA;
    const header = isHeader ? kHeader.exec(line) : null;
    if (header !== null) {
      entries.push({
        start: BigInt(`0x${header[1]}`),
        end: BigInt(`0x${header[2]}`),
        permissions: header[3] ?? '----',
        offset: BigInt(`0x${header[4]}`),
        device: (BigInt(`0x${header[5]}`) << 20n) | BigInt(`0x${header[6]}`),
        inode: BigInt(header[7] ?? 0),
        name: header[8] ?? '',
        flags: new Set(),
        protectionKey: 0,
      });
    } else if (line.startsWith('VmFlags:')) {
      const last = entries.at(-1);
      if (last !== undefined) last.flags = new Set(line.slice(8).trim().split(/\s+/));
    } else if (line.startsWith('ProtectionKey:')) {
      const last = entries.at(-1);
      if (last !== undefined) last.protectionKey = Number(line.slice(14));
    }
  }
  return entries;
}

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

// Reader of /proc/PID/mountinfo (proc(5)). No I/O.

export interface Mount {
  readonly id: number;
  readonly parentId: number;
  /** major << 20 | minor */
  readonly device: number;
  /** Of the file system, what is mounted. */
  readonly root: string;
  /** Where, below the root of the reading task. */
  readonly mountPoint: string;
  /** Per mount: "rw,nosuid,relatime". */
  readonly options: readonly string[];
  readonly sharedId: number;
  readonly masterId: number;
  readonly unbindable: boolean;
  readonly type: string;
  readonly source: string;
  /** Of the super block: "rw,size=65536k". */
  readonly superOptions: readonly string[];
}

export function parseMountinfo(bytes: Uint8Array): Mount[] {
  return Buffer.from(bytes)
    .toString('utf8')
    .split('\n')
    .flatMap((line) => {
      const mount = parseLine(line);
      return mount === undefined ? [] : [mount];
    });
}

function parseLine(line: string): Mount | undefined {
  const fields = line.split(' ');
  const dash = fields.indexOf('-', 6);
  if (dash < 0) return undefined;
  const [major = 0, minor = 0] = (fields[2] ?? '').split(':').map(Number);
  const optional = fields.slice(6, dash);
  const group = (name: string): number =>
    Number(optional.find((tag) => tag.startsWith(`${name}:`))?.slice(name.length + 1) ?? 0);
  return {
    id: Number(fields[0]),
    parentId: Number(fields[1]),
    device: major * 0x100000 + minor,
    root: unescapeOctal(fields[3] ?? ''),
    mountPoint: unescapeOctal(fields[4] ?? ''),
    options: (fields[5] ?? '').split(','),
    sharedId: group('shared'),
    masterId: group('master'),
    unbindable: optional.includes('unbindable'),
    type: fields[dash + 1] ?? '',
    source: unescapeOctal(fields[dash + 2] ?? ''),
    superOptions: (fields[dash + 3] ?? '').split(','),
  };
}

/** Space, tab, newline, backslash and number sign are printed as three octal digits. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

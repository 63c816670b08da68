// Access control lists of files, as extended attributes in the kernel's form.
import assert from 'node:assert/strict';
import { mustRun } from './run.js';

/** rw-, user 1000 r--, group r--, mask r--, others ---. */
const list = '0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff';

type Kind = 'access' | 'default';

async function python(program: string, ...args: readonly string[]): Promise<string> {
  return (await mustRun('python3', ['-c', `import os, sys\n${program}`, ...args])).stdout.trim();
}

export async function setAcl(path: string, kind: Kind): Promise<void> {
  await python('os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]))', path, attribute(kind), list);
}

export async function assertAcl(path: string, kind: Kind): Promise<void> {
  const shown = await python('print(os.getxattr(sys.argv[1], sys.argv[2]).hex())', path, attribute(kind));
  assert.equal(shown, list, `the ${kind} list of ${path}`);
}

const attribute = (kind: Kind): string => `system.posix_acl_${kind}`;

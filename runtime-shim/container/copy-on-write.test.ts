import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { copyOnWriteBytes } from './copy-on-write.js';

const kMebibyte = 1n << 20n;

describe('the room for what is copied on write', () => {
  let top = '';
  beforeEach(() => void (top = mkdtempSync(join(tmpdir(), 'stasis-cgroups-'))));
  afterEach(() => rmSync(top, { recursive: true }));

  /** A directory with the files of a cgroup, in the form that the kernel gives them. */
  function cgroup(path: string, files: Readonly<Record<string, string>>): string {
    const directory = join(top, path);
    mkdirSync(directory, { recursive: true });
    for (const [name, text] of Object.entries({ 'cgroup.procs': '', ...files }))
      writeFileSync(join(directory, name), `${text}\n`);
    return directory;
  }

  it('is what the memory limit of v2 leaves, page cache not counted', () => {
    const memory = { 'memory.max': String(64n * kMebibyte), 'memory.current': String(40n * kMebibyte) };
    const stat = `anon 1\ninactive_file ${kMebibyte}\nactive_file ${2n * kMebibyte}`;
    const at = cgroup('a', { ...memory, 'memory.stat': stat });
    assert.equal(copyOnWriteBytes(new Map([['', at]])), 27n * kMebibyte);
  });

  it('is the least that a cgroup above leaves, and nothing where that is exceeded', () => {
    cgroup('a', { 'memory.max': String(10n * kMebibyte), 'memory.current': String(4n * kMebibyte) });
    cgroup('a/b', { 'memory.max': 'max', 'memory.current': '1' });
    const at = cgroup('a/b/c', { 'memory.max': String(64n * kMebibyte), 'memory.current': '1' });
    assert.equal(copyOnWriteBytes(new Map([['', at]])), 6n * kMebibyte);
    cgroup('a', { 'memory.max': '4096', 'memory.current': String(4n * kMebibyte) });
    assert.equal(copyOnWriteBytes(new Map([['', at]])), 0n);
  });

  it('is what the memory limit of v1 leaves', () => {
    const at = cgroup('a', {
      'memory.limit_in_bytes': String(64n * kMebibyte),
      'memory.usage_in_bytes': String(60n * kMebibyte),
      'memory.stat': `inactive_file 1\ntotal_inactive_file ${kMebibyte}`,
    });
    assert.equal(copyOnWriteBytes(new Map([['memory', at]])), 5n * kMebibyte);
  });

  it('is half of what the host has where nothing else limits it', () => {
    const unlimited = cgroup('a', { 'memory.limit_in_bytes': '9223372036854771712', 'memory.usage_in_bytes': '1' });
    assert.ok(copyOnWriteBytes(new Map([['memory', unlimited]])) < 1n << 50n);
  });
});

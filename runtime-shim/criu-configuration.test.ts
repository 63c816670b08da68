import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { criuConfigurationOf, readCriuConfiguration } from './criu-configuration.js';

describe("CRIU's configuration of a container", () => {
  let directory: string;
  let file: string;

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'stasis-configuration-'));
    file = join(directory, 'runc.conf');
  });

  afterEach(() => rmSync(directory, { recursive: true }));

  it('turns on and off what the flags of those names do, and leaves the rest to the caller', () => {
    writeFileSync(file, 'shell-job\nno-ext-unix-sk\nfile-locks\nverbosity 4\nghost-limit 10M\nno-weak-sysctls\n');
    assert.deepEqual(readCriuConfiguration(file), { shell_job: true, ext_unix_sk: false });
  });

  it('is empty where there is none, or none is to be read', () => {
    assert.deepEqual(readCriuConfiguration(join(directory, 'none')), {});
    assert.deepEqual(criuConfigurationOf({ 'org.criu.config': '' }, 'runc'), {});
  });

  it('is the file that the annotation names', () => {
    writeFileSync(file, 'ext-unix-sk');
    assert.deepEqual(criuConfigurationOf({ 'org.criu.config': file }, 'crun'), { ext_unix_sk: true });
  });

  for (const [text, sentence] of [
    ['lazy-pages', /runc\.conf: line 1: lazy-pages is not built$/],
    ['\nshell-job yes', /runc\.conf: line 2: shell-job takes no value$/],
    ['a b c', /runc\.conf: line 1 is not an option/],
    ['#'.repeat(70_000), /no plain file of at most 65536 bytes$/],
  ] as const) {
    it(`is refused as ${JSON.stringify(text.slice(0, 20))}, with file and line`, () => {
      writeFileSync(file, text);
      assert.throws(() => readCriuConfiguration(file), { message: sentence });
    });
  }

  it('is not waited for where it is a named pipe', () => {
    execFileSync('mkfifo', [file]);
    assert.throws(() => readCriuConfiguration(file), { message: /no plain file/ });
  });
});

import assert from 'node:assert/strict';
import { parseCriuConfiguration } from './criu-configuration.js';

describe("CRIU's configuration files", () => {
  it('have an option a line, comments, and values that may be in quotes', () => {
    const text = '# for all\n\ntcp-established\n\tlog-file "a \\"b\\".log" # here\nghost-limit\t10M\nroot ""\n';
    assert.deepEqual(parseCriuConfiguration(text), [
      { name: 'tcp-established', value: undefined, line: 3 },
      { name: 'log-file', value: 'a "b".log', line: 4 },
      { name: 'ghost-limit', value: '10M', line: 5 },
      { name: 'root', value: '', line: 6 },
    ]);
    assert.deepEqual(parseCriuConfiguration(''), []);
  });

  for (const [text, sentence] of [
    ['tcp-established\nghost-limit 10 M', /^line 2 is not an option with at most one value$/],
    ['log-file "open', /^line 1 is not an option/],
    ['root:*:19000:0:::::', /^line 1 is not an option with at most one value$/],
    ['"quoted"', /^line 1 is not an option/],
    ['--shell-job', /^line 1 begins with a dash/],
  ] as const) {
    it(`are refused as ${JSON.stringify(text)}`, () =>
      assert.throws(() => parseCriuConfiguration(text), { message: sentence }));
  }
});

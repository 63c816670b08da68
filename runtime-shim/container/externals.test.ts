import assert from 'node:assert/strict';
import { parseDescriptors } from './externals.js';

describe('descriptors.json', () => {
  it('is read in the forms of runc and of crun', () => {
    const list = ['/dev/null', 'pipe:[1]', 'pipe:[2]'];
    assert.deepEqual(parseDescriptors(JSON.stringify(list)), list);
    assert.deepEqual(parseDescriptors(JSON.stringify(JSON.stringify(list))), list);
  });

  it('is refused when it is something else', () => {
    for (const text of ['', '{}', '[1]', '["a","b","c","d"]', '"x"'])
      assert.throws(() => parseDescriptors(text), /not a list of three strings/);
  });
});

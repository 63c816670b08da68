import assert from 'node:assert/strict';
import { imageCodec } from '../codecs.js';

describe('messages of images', () => {
  it('come back as they were', () => {
    const file = { type: 1, id: 7, ext: { id: 7, fown: { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 } } };
    assert.deepEqual(imageCodec().decode('file_entry', imageCodec().encode('file_entry', file)), file);
  });

  it('are refused where they are none', () => {
    const decode = (hex: string): unknown => imageCodec().decode('file_entry', Buffer.from(hex, 'hex'));
    assert.throws(() => decode('0801'), { name: 'TypeError', message: 'file_entry lacks the required field "id"' });
    assert.throws(() => decode('0a01'), { name: 'TypeError', message: 'field "type" of file_entry has wire type 2' });
    assert.throws(() => decode('080110071a7f'), RangeError);
    assert.throws(() => decode('0801100780'), RangeError);
    // A field of another version, in each of the forms that there are; a group has to end.
    assert.ok(decode('08011007f83f00f93f0000000000000000fa3f0100fd3f00000000'));
    assert.throws(() => decode('08011007fb3f'), RangeError);
    assert.throws(() => decode('0801100700'), TypeError);
    // The inner message is longer than the outer one says.
    assert.throws(() => decode('08011007220308011007'), RangeError);
    assert.throws(() => imageCodec().encode('file_entry', { id: 1 }), /lacks the required field "type"/);
  });
});

import assert from 'node:assert/strict';
import { decodeDbusMessage, encodeDbusMessage, kDbusMethodCall, type DbusMessage } from './dbus-message.js';

const hello: DbusMessage = {
  type: kDbusMethodCall,
  serial: 1,
  path: '/org/freedesktop/DBus',
  interface: 'org.freedesktop.DBus',
  member: 'Hello',
  destination: 'org.freedesktop.DBus',
  body: [],
};

// As dbus-send writes it, with the fields in the order of their codes.
const helloBytes =
  '6c01000100000000010000006d000000' +
  '01016f00150000002f6f72672f667265656465736b746f702f4442757300' +
  '0000020173001400' +
  '00006f72672e667265656465736b746f702e4442757300000000' +
  '03017300050000' +
  '0048656c6c6f000000' +
  '06017300140000006f72672e667265656465736b746f702e4442757300000000';

describe('D-Bus messages', () => {
  it('have the bytes of the specification', () => {
    assert.equal(encodeDbusMessage(hello).toString('hex'), helloBytes);
  });

  it('come back as they were, whatever types are in them', () => {
    const message: DbusMessage = {
      ...hello,
      signature: 'ya(sv)asbt(ix)d',
      body: [
        7,
        [
          ['PIDs', { signature: 'au', value: [1, 4_000_000_000] }],
          ['Delegate', { signature: 'b', value: true }],
          ['Nested', { signature: 'a(say)', value: [['x', [1, 2]]] }],
          ['Empty', { signature: 'a(ss)', value: [] }],
        ],
        ['ä', ''],
        false,
        18_446_744_073_709_551_615n,
        [-1, -2n],
        0.5,
      ],
    };
    const bytes = encodeDbusMessage(message);
    const decoded = decodeDbusMessage(Buffer.concat([bytes, Buffer.from('next')]));
    assert.deepEqual(decoded, { message, length: bytes.length });
  });

  it('are waited for until they are complete', () => {
    const bytes = encodeDbusMessage({ ...hello, signature: 's', body: ['text'] });
    for (let length = 0; length < bytes.length; length++)
      assert.equal(decodeDbusMessage(bytes.subarray(0, length)), undefined);
  });

  it('are refused if they are none', () => {
    const refused = (change: (bytes: Buffer) => void): void => {
      const bytes = encodeDbusMessage({ ...hello, signature: 'as', body: [['text']] });
      change(bytes);
      assert.throws(() => decodeDbusMessage(bytes), { name: 'FormatError' });
    };
    refused((bytes) => void bytes.writeUInt8(0x42, 0));
    refused((bytes) => void bytes.writeUInt32LE(0x7fffffff, 4));
    // The body: length of the array, length of the text.
    const body = encodeDbusMessage({ ...hello, signature: 'as', body: [['text']] }).length - 13;
    refused((bytes) => void bytes.writeUInt32LE(1000, body));
    refused((bytes) => void bytes.writeUInt32LE(1000, body + 4));
    assert.throws(() => encodeDbusMessage({ ...hello, signature: 'a()', body: [[]] }), /a type that is not known/);
    assert.throws(() => encodeDbusMessage({ ...hello, signature: '(s', body: [['']] }), /a type that is not known/);
  });
});

import assert from 'node:assert/strict';
import type { TcpConnection } from '../../../nativecore/schema/messages.js';
import { StasisError } from '../../errors/index.js';
import type { CompileContext } from '../compile-context.js';
import type { CompileOptions, EncodeOptions } from '../options.js';
import { Phase } from '../plan/builder.js';
import { FileFixture, objectionsOf, stepsOf } from './file-fixture.js';
import { packetFromPeer } from './tcp-packet.js';

const kAllOptions = 7; // timestamps, SACK, window scale
const kLocal = address('10.0.0.1', 80);
const kPeer = address('10.0.0.2', 40000);

function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  values.forEach((value, index) => bytes.writeUInt32LE(value >>> 0, 4 * index));
  return bytes;
}

function address(host: string, port: number): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.writeUInt16LE(2, 0);
  bytes.writeUInt16BE(port, 2);
  bytes.set(host.split('.').map(Number), 4);
  return bytes;
}

const connection: TcpConnection = {
  receiveSequence: 1005,
  receiveQueue: Buffer.from('hello'),
  sendSequence: 2000,
  sendQueue: Buffer.from('sent, unsent'),
  unsentBytes: 7,
  timestamp: 777,
  window: u32(11, 22, 33, 44, 55),
  mssClamp: 1460,
  outputBytes: 12,
};

interface SocketFields {
  readonly state?: number;
  readonly connection?: TcpConnection | undefined;
  readonly local?: Uint8Array;
  readonly peer?: Uint8Array;
  readonly inode?: bigint;
}

function add(fixture: FileFixture, fields: SocketFields = {}): number {
  const { state = 1, local = kLocal, peer = kPeer, inode = 0xabcn } = fields;
  const info = Buffer.alloc(104);
  info[0] = state;
  info[5] = kAllOptions;
  info[6] = 0x95; // scales: 5 of the peer, 9 of ours
  return fixture.open({
    link: `socket:[${inode}]`,
    stat: { mode: 0o140777, inode },
    socket: {
      inode,
      family: 2,
      type: 1,
      protocol: 6,
      localAddress: local,
      peerAddress: peer,
      tcpInfo: info,
      connection: 'connection' in fields ? fields.connection : connection,
      options: [
        { level: 1, name: 2, value: u32(1) },
        { level: 1, name: 7, value: u32(4096) },
        { level: 6, name: 1, value: u32(1) },
      ],
    },
  });
}

function one(fields: SocketFields = {}): FileFixture {
  const fixture = new FileFixture();
  fixture.task({ nsPid: 1, fds: { 5: add(fixture, fields) } });
  return fixture;
}

const established: Partial<EncodeOptions> = { tcp: 'established', connectionLock: '' };

function restored(
  fixture: FileFixture,
  encode: Partial<EncodeOptions> = established,
  compile: Partial<CompileOptions> = { tcp: 'established' },
): CompileContext {
  return fixture.compile(compile, fixture.model(fixture.encode(encode)));
}

const names = ['setsockopt', 'bind', 'connect', 'send', 'shutdown', 'packet', 'await'];

function callsOf(ctx: CompileContext, last = false): string[] {
  const planned = ctx.plan.connections[0];
  assert.ok(planned);
  return (last ? planned.lastCalls : planned.calls).map(({ kind, level, name, data }) => {
    const hex = Buffer.from(data).toString('hex');
    if (kind === 0) return `${level} ${name} ${hex}`;
    if (kind === 3) return `send ${Buffer.from(data).toString()}`;
    return kind === 4 ? `shutdown ${level}` : names[kind]!;
  });
}

const queueNone = '6 20 00000000';
const queueReceive = '6 20 01000000';
const queueSend = '6 20 02000000';

describe('TCP connections', () => {
  it('become an image with both queues, and that the calls which make them again', () => {
    const fixture = one();
    const ctx = fixture.encode(established);
    const model = fixture.model(ctx);
    const [image] = model.set.entries('tcp-stream', 'abc');
    assert.ok(image);
    assert.equal(Buffer.from(image.payload ?? []).toString(), 'hellosent, unsent');
    const { message } = image;
    assert.deepEqual(
      [message.inq_len, message.inq_seq, message.outq_len, message.outq_seq, message.unsq_len],
      [5, 1005, 12, 2000, 7],
    );
    assert.deepEqual([message.snd_wscale, message.rcv_wscale, message.mss_clamp], [5, 9, 1460]);
    assert.deepEqual(
      [message.snd_wl1, message.snd_wnd, message.max_window, message.rcv_wnd, message.rcv_wup],
      [11, 22, 33, 44, 55],
    );

    const compiled = fixture.compile({ tcp: 'established' }, model);
    assert.deepEqual(compiled.objections, []);
    assert.deepEqual(callsOf(compiled), [
      '6 19 01000000',
      '1 32 22000100',
      '1 33 22000100',
      'bind',
      queueReceive,
      `6 21 ${u32(1000).toString('hex')}`,
      queueSend,
      `6 21 ${u32(1988).toString('hex')}`,
      'connect',
      `6 22 ${u32(4, 0, 3, 5 | (9 << 16), 8, 0, 2, 1460).toString('hex')}`,
      `6 24 ${u32(777).toString('hex')}`,
      queueReceive,
      'send hello',
      queueSend,
      'send sent,',
      `6 29 ${u32(11, 22, 33, 44, 55).toString('hex')}`,
      queueNone,
    ]);
    assert.deepEqual(callsOf(compiled, true), [
      '6 19 00000000',
      '1 2 01000000',
      '6 1 01000000',
      'send  unsent',
      '1 32 00080000',
    ]);
    const planned = compiled.plan.connections[0];
    assert.deepEqual([planned?.task, planned?.fd, planned?.lock], [0, 5, '']);
    assert.ok(kLocal.equals(planned?.local ?? new Uint8Array(0)));
    // The socket has its address later, when the network is there.
    const steps = stepsOf(compiled, 1, Phase.FILES);
    assert.ok(!steps.some((step) => /^(bind|connect)/.test(step)), steps.join('\n'));
  });

  const ends: readonly (readonly [string, number, readonly number[], readonly string[]])[] = [
    ['our FIN under way', 4, [1000, 1987], ['shutdown 1']],
    ['our FIN acknowledged', 5, [1000, 1987], ['shutdown 1', 'packet']],
    ["the peer's FIN", 8, [999, 1988], ['packet', 'await']],
    ["the peer's FIN and then ours", 9, [999, 1987], ['packet', 'await', 'shutdown 1']],
    ["our FIN and then the peer's", 11, [999, 1987], ['shutdown 1', 'packet', 'await']],
  ];
  for (const [what, state, [receive, send], expected] of ends)
    it(`are given ${what}, each taking a sequence number`, () => {
      const calls = callsOf(restored(one({ state })));
      assert.deepEqual(
        calls.filter((call) => call.startsWith('6 21 ')),
        [receive!, send!].map((from) => `6 21 ${u32(from).toString('hex')}`),
      );
      assert.deepEqual(
        calls.filter((call) => /^(shutdown|packet|await)/.test(call)),
        expected,
      );
    });

  it('to outside are refused without an option, at checkpoint and at restore', () => {
    const fixture = one({ connection: undefined });
    assert.deepEqual(objectionsOf(fixture.encode()), [
      'fd 5 of pid 1001 (container pid 1) (target) is a TCP connection (established) from 10.0.0.1:80 to 10.0.0.2:40000, whose other end is not in the container',
    ]);
    const { objections, plan } = restored(one(), established, { tcp: 'fail' });
    assert.match(
      objections[0]?.message ?? '',
      /10\.0\.0\.1:80 to 10\.0\.0\.2:40000, whose other end is not in the checkpoint/,
    );
    assert.match(objections[0]?.hint ?? '', /--tcp-established .*--tcp-close .*org\.stasis\.tcp/);
    assert.deepEqual(plan.connections, []);
  });

  it('inside need none', () => {
    const fixture = new FileFixture();
    const [first, second] = [add(fixture), add(fixture, { local: kPeer, peer: kLocal, inode: 0xabdn })];
    fixture.task({ nsPid: 1, fds: { 5: first, 6: second } });
    const compiled = restored(fixture, { tcp: 'fail' }, { tcp: 'fail' });
    assert.deepEqual(compiled.objections, []);
    assert.deepEqual(
      compiled.plan.connections.map(({ fd }) => fd),
      [5, 6],
    );
  });

  it('are restored closed when that is asked for, or was at the checkpoint', () => {
    for (const [encode, compile] of [
      [established, { tcp: 'close' }],
      [{ tcp: 'close' }, { tcp: 'established' }],
    ] as const) {
      const fixture = one(encode.tcp === 'close' ? { connection: undefined } : {});
      const encoded = fixture.encode(encode);
      assert.deepEqual(encoded.objections, []);
      const model = {
        ...fixture.model(encoded),
        inventory: { ...fixture.model(encoded).inventory, ...encoded.inventory },
      };
      const compiled = fixture.compile(compile, model);
      assert.deepEqual(compiled.objections, []);
      assert.deepEqual(compiled.plan.connections, []);
      assert.ok(stepsOf(compiled, 1, Phase.FILES).some((step) => /^shutdown s\d+ 2$/.test(step)));
    }
  });

  it('name the table that has dropped their packets since the checkpoint', () => {
    const runId = '6f1c0f62-5a3e-4a62-9b7c-0d5a7e1f2b3c';
    const fixture = one();
    const encoded = fixture.encode({ tcp: 'established', connectionLock: runId });
    assert.deepEqual(encoded.inventory, { ...encoded.inventory, network_lock_method: 1, dump_criu_run_id: runId });
    const model = fixture.model(encoded);
    const inventory = { ...model.inventory, network_lock_method: 1, dump_criu_run_id: runId };
    assert.equal(
      fixture.compile({ tcp: 'established' }, { ...model, inventory }).plan.connections[0]?.lock,
      'CRIU-6f1c0f62-5a3e-4a62-9b',
    );
    // Closed ones have it removed, too: their peers are to be told.
    const closed = fixture.compile({ tcp: 'close' }, { ...model, inventory }).plan.connections[0];
    assert.deepEqual([closed?.calls, closed?.lastCalls], [[], []]);
    const spoiled = { ...inventory, dump_criu_run_id: '../x' };
    assert.throws(
      () => fixture.compile({ tcp: 'established' }, { ...model, inventory: spoiled }),
      (error) => error instanceof StasisError && error.code === 'IMAGE_CORRUPT',
    );
  });

  it('over which the kernel speaks TLS are refused', () => {
    const fixture = new FileFixture();
    const index = add(fixture);
    const socket = fixture.openFiles[index]?.socket;
    assert.ok(socket);
    socket.options = [{ level: 6, name: 31, value: Buffer.from('tls\0') }];
    fixture.task({ nsPid: 1, fds: { 5: index } });
    assert.match(objectionsOf(fixture.encode(established))[0] ?? '', /speaks "tls" over/);
  });

  it('that nobody has answered yet are refused', () => {
    assert.match(objectionsOf(one({ state: 2 }).encode(established))[0] ?? '', /\(connecting\).*not been answered yet/);
  });

  it('are corrupt without their image, with another length, or with an impossible scale', () => {
    const fixture = one();
    const encoded = fixture.encode(established);
    for (const change of [
      (files: Map<string, Uint8Array>) => void files.delete('tcp-stream-abc.img'),
      (files: Map<string, Uint8Array>) => {
        const bytes = files.get('tcp-stream-abc.img') ?? new Uint8Array(0);
        files.set('tcp-stream-abc.img', bytes.subarray(0, bytes.length - 1));
      },
    ])
      assert.throws(
        () => fixture.compile({ tcp: 'established' }, fixture.model(encoded, change)),
        (error) => error instanceof StasisError && error.code === 'IMAGE_CORRUPT',
      );
  });
});

describe('a packet as from the peer', () => {
  const sum = (bytes: Buffer): number => {
    let total = 0;
    for (let at = 0; at < bytes.length; at += 2) total += bytes.readUInt16BE(at);
    while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
    return total;
  };
  const fields = { sequence: 0xfffffffe, acknowledged: 7, window: 500, fin: true };
  const four = [Buffer.from([10, 0, 0, 1]).readUInt32LE(0)];

  it('has checksums that add up, over IPv4 and IPv6', () => {
    const packet = packetFromPeer({ ...fields, local: { words: four, port: 80 }, peer: { words: four, port: 4000 } });
    assert.equal(packet.length, 40);
    assert.equal(sum(packet.subarray(0, 20)), 0xffff);
    const pseudo = Buffer.concat([packet.subarray(12, 20), Buffer.from([0, 6, 0, 20])]);
    assert.equal(sum(Buffer.concat([pseudo, packet.subarray(20)])), 0xffff);
    assert.equal(packet.readUInt32BE(24), 0xfffffffe);
    assert.equal(packet[33], 0x11);

    const six = [1, 2, 3, 4];
    const long = packetFromPeer({ ...fields, local: { words: six, port: 80 }, peer: { words: six, port: 4000 } });
    assert.equal(long.length, 60);
    const longPseudo = Buffer.concat([long.subarray(8, 40), Buffer.from([0, 0, 0, 20, 0, 0, 0, 6])]);
    assert.equal(sum(Buffer.concat([longPseudo, long.subarray(40)])), 0xffff);
  });

  it('is one of IPv4 for an IPv6 socket that speaks it', () => {
    const mapped = [0, 0, 0xffff0000, ...four];
    const packet = packetFromPeer({ ...fields, local: { words: mapped, port: 80 }, peer: { words: mapped, port: 1 } });
    assert.equal(packet[0], 0x45);
    assert.deepEqual([...packet.subarray(12, 16)], [10, 0, 0, 1]);
  });
});

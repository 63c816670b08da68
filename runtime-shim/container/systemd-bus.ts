// A connection to systemd: over the system bus, or, where no bus runs, over
// systemd's own socket, which speaks the same protocol without a bus between.
import { connect, type Socket } from 'node:net';
import {
  decodeDbusMessage,
  encodeDbusMessage,
  kDbusError,
  kDbusMethodCall,
  kDbusMethodReturn,
  kDbusSignal,
  type DbusMessage,
  type DbusValue,
  type DbusVariant,
} from '../../oci-spec/dbus-message.js';
import { causeText, errnoCode } from '../errors/index.js';

const kManagerPath = '/org/freedesktop/systemd1';
const kManagerInterface = 'org.freedesktop.systemd1.Manager';
const kSystemBusSocket = '/run/dbus/system_bus_socket';
const kPrivateSocket = '/run/systemd/private';
/** For an answer, and for the end of a job: as long as runc waits. */
const kAnswerTimeoutMs = 30_000;

/** An error that the other side answered: "org.freedesktop.systemd1.NoSuchUnit". */
export class DbusError extends Error {
  constructor(
    override readonly name: string,
    message: string,
  ) {
    super(message);
  }
}

export class SystemdBus {
  readonly #socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #serial = 0;
  readonly #calls = new Map<number, Waiter<DbusMessage>>();
  /** Jobs may end before the answer that names them has been read. */
  readonly #jobResults = new Map<string, string>();
  readonly #jobs = new Map<string, Waiter<string>>();
  #broken: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', (error) => this.#break(error));
    socket.on('close', () => this.#break(new Error('the connection was closed')));
  }

  /** Throws Error with what has been tried. */
  static async open(): Promise<SystemdBus> {
    const named = busSocket(process.env['DBUS_SYSTEM_BUS_ADDRESS'] ?? '');
    const sockets = [named ?? kSystemBusSocket, kPrivateSocket];
    const failures: string[] = [];
    for (const path of sockets) {
      try {
        const bus = new SystemdBus(await connectAndAuthenticate(path));
        if (path !== kPrivateSocket) await bus.#join();
        // Without it, systemd tells a bus only of what it was asked for itself, and older ones not even that.
        await bus.callManager('Subscribe', '', []);
        return bus;
      } catch (error) {
        failures.push(`${path}: ${errnoCode(error) === '' ? (error as Error).message : causeText(error)}`);
      }
    }
    throw new Error(failures.join(', '));
  }

  async #join(): Promise<void> {
    const bus = {
      path: '/org/freedesktop/DBus',
      interface: 'org.freedesktop.DBus',
      destination: 'org.freedesktop.DBus',
    };
    await this.call({ ...bus, member: 'Hello', body: [] });
    const rule = `type='signal',sender='org.freedesktop.systemd1',path='${kManagerPath}',interface='${kManagerInterface}',member='JobRemoved'`;
    await this.call({ ...bus, member: 'AddMatch', signature: 's', body: [rule] });
  }

  /** Throws DbusError, or Error if the connection is lost. */
  async call(message: Omit<DbusMessage, 'type' | 'serial'>): Promise<readonly DbusValue[]> {
    if (this.#broken !== undefined) throw this.#broken;
    const serial = ++this.#serial;
    const reply = waitIn(this.#calls, serial, `answer to ${message.member ?? ''}`);
    this.#socket.write(
      encodeDbusMessage({ destination: 'org.freedesktop.systemd1', ...message, type: kDbusMethodCall, serial }),
    );
    const { type, errorName, body } = await reply;
    if (type === kDbusError)
      throw new DbusError(errorName ?? '', typeof body[0] === 'string' ? body[0] : 'it gives no reason');
    return body;
  }

  callManager(member: string, signature: string, body: readonly DbusValue[]): Promise<readonly DbusValue[]> {
    return this.call({ path: kManagerPath, interface: kManagerInterface, member, signature, body });
  }

  /** 252 */
  async systemdVersion(): Promise<number> {
    const text = await this.property(kManagerPath, kManagerInterface, 'Version');
    return Number(/[0-9]+/.exec(String(text))?.[0] ?? 0);
  }

  async property(path: string, of: string, name: string): Promise<DbusValue> {
    const get = { path, interface: 'org.freedesktop.DBus.Properties', member: 'Get' };
    const [value] = await this.call({ ...get, signature: 'ss', body: [of, name] });
    return (value as DbusVariant).value;
  }

  /** "done", "failed", "canceled", ... */
  async jobResult(jobPath: string): Promise<string> {
    const known = this.#jobResults.get(jobPath);
    if (known !== undefined) return known;
    if (this.#broken !== undefined) throw this.#broken;
    return await waitIn(this.#jobs, jobPath, 'end of its job');
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  #take(chunk: Buffer): void {
    this.#received = Buffer.concat([this.#received, chunk]);
    try {
      for (;;) {
        const decoded = decodeDbusMessage(this.#received);
        if (decoded === undefined) return;
        this.#received = this.#received.subarray(decoded.length);
        this.#handle(decoded.message);
      }
    } catch (error) {
      this.#break(error as Error);
      this.#socket.destroy();
    }
  }

  #handle(message: DbusMessage): void {
    if (message.type === kDbusMethodReturn || message.type === kDbusError) {
      this.#calls.get(message.replySerial ?? 0)?.resolve(message);
    } else if (message.type === kDbusSignal && message.member === 'JobRemoved') {
      const [, job, , result] = message.body;
      if (typeof job !== 'string' || typeof result !== 'string') return;
      this.#jobResults.set(job, result);
      this.#jobs.get(job)?.resolve(result);
    }
  }

  #break(error: Error): void {
    this.#broken ??= error;
    for (const waiter of [...this.#calls.values(), ...this.#jobs.values()]) waiter.reject(this.#broken);
  }
}

interface Waiter<Result> {
  resolve(result: Result): void;
  reject(error: Error): void;
}

/** Under `key` in `waiters` until it has been told the result, or until the time is up. */
async function waitIn<Key, Result>(waiters: Map<Key, Waiter<Result>>, key: Key, what: string): Promise<Result> {
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<Result>((resolve, reject) => {
      waiters.set(key, { resolve, reject });
      const late = new Error(`there was no ${what} within ${kAnswerTimeoutMs / 1000} s`);
      timer = setTimeout(() => reject(late), kAnswerTimeoutMs);
    });
  } finally {
    clearTimeout(timer);
    waiters.delete(key);
  }
}

/** The first of the addresses that is a socket with a path. */
function busSocket(addresses: string): string | undefined {
  const path = addresses
    .split(';')
    .map((address) => /^unix:(?:[^;]*,)?path=([^,]+)/.exec(address)?.[1])
    .find((found) => found !== undefined);
  return path === undefined ? undefined : decodeURIComponent(path);
}

/** The kernel tells the other side who we are (SO_PEERCRED); EXTERNAL asks it to believe that. */
async function connectAndAuthenticate(path: string): Promise<Socket> {
  const socket = connect({ path });
  socket.setTimeout(kAnswerTimeoutMs, () =>
    socket.destroy(new Error(`it does not answer within ${kAnswerTimeoutMs / 1000} s`)),
  );
  try {
    await new Promise<void>((resolve, reject) => {
      let answer = '';
      const take = (chunk: Buffer): void => {
        answer += chunk.toString('latin1');
        if (!answer.endsWith('\r\n')) return;
        socket.off('data', take);
        socket.setTimeout(0);
        if (!answer.startsWith('OK ')) return reject(new Error(`it does not let us in (${answer.trim()})`));
        resolve();
      };
      socket.on('data', take);
      socket.once('error', reject);
      socket.once('close', () => reject(new Error('the connection was closed')));
      // BEGIN at once: what comes in one piece with it, systemd's own socket does not look at before there is more.
      const identity = Buffer.from(String(process.geteuid?.() ?? 0)).toString('hex');
      socket.write(`\0AUTH EXTERNAL ${identity}\r\nBEGIN\r\n`);
    });
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

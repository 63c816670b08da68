// redis-server under test: its configuration, a load of data, and questions
// through the client in the same container (which connects anew each time).
import { createWriteStream } from 'node:fs';
import { once } from 'node:events';
import type { Container } from './container.js';
import { describeFailure } from './run.js';
import { waitFor } from './wait.js';

export const redisConfiguration = [
  'bind 127.0.0.1',
  'port 6379',
  'dir /data',
  'appendonly yes',
  'appendfsync everysec',
  'save ""',
  'enable-debug-command yes',
  // A background rewrite forks; when it happens is not up to the test.
  'auto-aof-rewrite-percentage 0',
  '',
].join('\n');

const valueBytes = 1000;

/** SET commands for `megabytes` of values, in the client's pipe format; every value is different. */
export async function writeRedisLoad(file: string, megabytes: number): Promise<void> {
  const stream = createWriteStream(file);
  const keys = (megabytes * 1_000_000) / valueBytes;
  for (let first = 0; first < keys; first += 1000) {
    let chunk = '';
    for (let key = first; key < first + 1000; key++) {
      const value = `${key}:`.padEnd(valueBytes, String.fromCharCode(97 + (key % 26)));
      const name = `key:${key}`;
      chunk += `*3\r\n$3\r\nSET\r\n$${name.length}\r\n${name}\r\n$${valueBytes}\r\n${value}\r\n`;
    }
    if (!stream.write(chunk)) await once(stream, 'drain');
  }
  stream.end();
  await once(stream, 'close');
}

export interface RedisContents {
  readonly keys: number;
  /** redis's own digest over all keys and values. */
  readonly digest: string;
}

export interface RedisClient {
  ask(...command: string[]): Promise<string>;
  contents(): Promise<RedisContents>;
  untilReady(): Promise<void>;
}

export function clientOf(container: Container): RedisClient {
  const ask = async (...command: string[]): Promise<string> => {
    const result = await container.stasis(['exec', container.id, 'redis-cli', ...command], { timeoutMs: 60_000 });
    if (result.exitCode !== 0) throw new Error(describeFailure(result));
    return result.stdout.trim();
  };
  return {
    ask,
    contents: async () => ({ keys: Number(await ask('DBSIZE')), digest: await ask('DEBUG', 'DIGEST') }),
    untilReady: async () => {
      await waitFor('redis to answer', async () => ((await ask('PING').catch(String)) === 'PONG' ? true : undefined));
    },
  };
}

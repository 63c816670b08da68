// PostgreSQL: a dozen processes that share buffers, locks and semaphores in
// anonymous shared memory, a System V segment, and a mapped file in /dev/shm;
// checkpointed and restored while transactions are under way.
import assert from 'node:assert/strict';
import { chownSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { readOrEmpty } from '../support/processes.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const kUser = 1000;

/** Two clients write without a pause, each in one session; the server tells how far they are. */
const program = `
PATH=/usr/lib/postgresql/15/bin:$PATH
ask() { psql -qAtX -v ON_ERROR_STOP=1 -h /tmp postgres "$@"; }
initdb -D /data/db -A trust -N --locale=C >/data/initdb.log 2>&1 || exit 1
postgres -D /data/db -c unix_socket_directories=/tmp -c listen_addresses= -c fsync=off -c autovacuum_naptime=1s \\
  >/data/server.log 2>&1 &
until ask -c 'select 1' >/dev/null 2>&1; do sleep 0.1; done
ask -c 'create table log(client int, n int, payload text, primary key (client, n)); create table counter(n int); insert into counter values (0)'
client() {
  n=0
  while :; do
    n=$((n + 1))
    echo "begin; insert into log values ($1, $n, repeat(md5('$1 $n'), 20)); update counter set n = n + 1; commit;"
  done | ask >/data/client$1.log 2>&1
  echo "client $1 ended"
}
client 1 &
client 2 &
echo READY
wait
`;

interface Contents {
  readonly rows: number;
  readonly counted: number;
  /** Rows that are not what was inserted, or have a gap before them. */
  readonly wrong: number;
}

describe('PostgreSQL', function () {
  this.timeout(600_000); // the packages come over the network, the first time
  const bed = useTestBed();

  it('goes on with its transactions after each of two restores', async () => {
    const container = await bed.prepare({
      rootfs: 'postgres',
      args: ['sh', '-c', program],
      adjust: (spec) => {
        spec.process.user = { uid: kUser, gid: kUser };
        delete spec.process.rlimits;
      },
    });
    chownSync(join(container.rootfs, 'data'), kUser, kUser);
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
    await container.waitForOutput(/READY/, 120_000);
    await untilMore(container, 0);
    for (let round = 1; round <= 2; round++) {
      await container.cycle();
      const { rows } = await contents(container);
      await untilMore(container, rows);
    }
    const after = await contents(container);
    assert.equal(after.counted, after.rows, 'a transaction was done in part');
    assert.equal(after.wrong, 0, 'rows are missing or damaged');
    const log = readOrEmpty(join(container.rootfs, 'data/server.log'));
    assert.doesNotMatch(log, /PANIC|FATAL|terminated by signal|invalid|corrupt/);
    assert.doesNotMatch(container.output(), /ended/, 'a client has lost its session');
  });

  async function ask(container: Container, sql: string): Promise<string> {
    const client = ['/usr/lib/postgresql/15/bin/psql', '-qAtX', '-h', '/tmp', 'postgres', '-c', sql];
    return (await container.must(['exec', container.id, ...client], { timeoutMs: 60_000 })).stdout.trim();
  }

  async function contents(container: Container): Promise<Contents> {
    const sql = `select (select count(*) from log), (select n from counter),
      (select count(*) from (select payload = repeat(md5(client || ' ' || n), 20) and
        n = row_number() over (partition by client order by n) as good from log) as rows where not good)`;
    const [rows = 0, counted = -1, wrong = -1] = (await ask(container, sql)).split('|').map(Number);
    return { rows, counted, wrong };
  }

  async function untilMore(container: Container, rows: number): Promise<void> {
    await waitFor('transactions', async () => ((await contents(container)).rows > rows + 50 ? true : undefined), {
      timeoutMs: 60_000,
    });
  }
});

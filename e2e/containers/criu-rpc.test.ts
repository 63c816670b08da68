// CRIU's remote procedure calls, message by message: what go-criu, libcriu and
// runc rely on without saying so.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { talk } from '../support/criu-rpc.js';
import { requires } from '../support/lanes.js';
import { isAlive, processState } from '../support/processes.js';
import { useTestBed } from '../support/test-bed.js';
import { Tree } from '../support/tree.js';
import { waitFor } from '../support/wait.js';

describe('criu swrk, message by message', () => {
  const bed = useTestBed();

  beforeEach(function () {
    requires(this, 'root', 'built', 'peers');
  });

  function images(name: string): string {
    const directory = `${bed.directory}/${name}`;
    mkdirSync(directory, { recursive: true });
    return directory;
  }

  it('tells its version and its features, asked alone or over one socket, and ends well', async () => {
    // libcriu sends options along that name no directory.
    const version = { type: 'VERSION', opts: { images_dir_fd: -1 } };
    const alone = await talk([version]);
    assert.equal(alone.exitStatus, 0);
    assert.deepEqual(alone.answers, [
      { type: 'VERSION', success: true, version: { major_number: 4, minor_number: 2 } },
    ]);
    const check = { type: 'FEATURE_CHECK', features: { mem_track: true, lazy_pages: true, pidfd_store: true } };
    const together = await talk([{ ...version, keep_open: true }, check]);
    assert.equal(together.exitStatus, 0);
    assert.deepEqual(together.answers[1]?.features, { mem_track: true, lazy_pages: false, pidfd_store: false });
    const nothing = await talk([{ type: 'FEATURE_CHECK', keep_open: true }]);
    assert.deepEqual(nothing.answers[0]?.features, { mem_track: false, lazy_pages: false, pidfd_store: false });
    assert.equal(nothing.exitStatus, 0);
    const host = await talk([{ type: 'CHECK' }]);
    assert.deepEqual(host, { ...host, answers: [{ type: 'CHECK', success: true }], exitStatus: 0 });
  });

  it('answers what it cannot do with the type of the request, a number and a sentence', async () => {
    const answered = async (request: object | number): Promise<readonly unknown[]> => {
      const { answers, exitStatus, longestAnswerBytes } = await talk([request]);
      // go-criu reads answers into 8 KiB.
      assert.ok(longestAnswerBytes <= 8192);
      assert.notEqual(exitStatus, 0);
      assert.equal(answers.length, 1);
      const { type, success, cr_errno, cr_errmsg, restore } = answers[0]!;
      assert.equal(success, false);
      assert.match(cr_errmsg!, /^[^\n]+$/);
      return [type, cr_errno, ...(restore === undefined ? [] : [restore.pid])];
    };
    const [EBADRQC, ESRCH, ENOTSUP] = [56, 3, 95];
    assert.deepEqual(await answered(77), ['EMPTY', EBADRQC]);
    assert.deepEqual(await answered({ type: 'PAGE_SERVER' }), ['PAGE_SERVER', EBADRQC]);
    assert.deepEqual(await answered({ type: 'WAIT_PID', pid: 1 }), ['WAIT_PID', EBADRQC]);
    assert.deepEqual(await answered({ type: 'CPUINFO_CHECK' }), ['CPUINFO_CHECK', ENOTSUP]);
    assert.deepEqual(await answered({ type: 'DUMP' }), ['DUMP', EBADRQC]);
    const directory = { images_dir_fd: images('none') };
    const gone = { ...directory, pid: 4194304 };
    assert.deepEqual(await answered({ type: 'DUMP', opts: gone }), ['DUMP', ESRCH]);
    assert.deepEqual(await answered({ type: 'DUMP', opts: { ...gone, log_file: 'a/b' } }), ['DUMP', EBADRQC]);
    assert.deepEqual(await answered({ type: 'DUMP', opts: directory }), ['DUMP', EBADRQC]);
    // The pid is a required field, in failures as well; there is no number for "no images".
    assert.deepEqual(await answered({ type: 'RESTORE', opts: directory }), ['RESTORE', undefined, -1]);
    assert.deepEqual(await answered({ type: 'RESTORE', opts: { ...directory, empty_ns: 0x20000000 } }), [
      'RESTORE',
      EBADRQC,
      -1,
    ]);
  });

  it('takes rounds of pre-dumps and the dump over one socket, and tells of each moment in its order', async () => {
    const tree = await Tree.start(bed);
    const round = (name: string, parent?: string): object => ({
      images_dir_fd: images(name),
      work_dir_fd: images(`${name}.work`),
      pid: tree.pid,
      log_file: 'dump.log',
      notify_scripts: true,
      track_mem: true,
      ...(parent === undefined ? {} : { parent_img: `../${parent}` }),
    });
    const dumped = await talk([
      { type: 'PRE_DUMP', opts: round('one') },
      { type: 'PRE_DUMP', opts: round('two', 'one') },
      { type: 'DUMP', opts: round('three', 'two') },
    ]);
    assert.deepEqual(
      dumped.answers.map(({ type, success }) => [type, success]),
      [
        ['PRE_DUMP', true],
        ['PRE_DUMP', true],
        ['DUMP', true],
      ],
    );
    assert.deepEqual(dumped.answers[2]?.dump, { restored: false });
    assert.equal(dumped.exitStatus, 0);
    // None for a pre-dump: runc takes one for a sign of something else.
    assert.deepEqual(dumped.scripts, ['pre-dump', 'post-dump']);
    assert.equal(readlinkSync(`${images('three')}/parent`), '../two');
    await tree.isGone();

    const opts = { images_dir_fd: images('three'), work_dir_fd: images('restore'), log_file: 'restore.log' };
    const restored = await talk([{ type: 'RESTORE', opts: { ...opts, notify_scripts: true } }]);
    assert.deepEqual(restored.answers, [{ type: 'RESTORE', success: true, restore: { pid: tree.pid } }]);
    assert.equal(restored.exitStatus, 0);
    const pid = `(${tree.pid})`;
    const around = ['setup-namespaces', 'post-setup-namespaces', `post-restore${pid}`, 'pre-resume', 'post-resume'];
    assert.deepEqual(
      restored.scripts.map((script) => (script === `setup-namespaces${pid}` ? 'setup-namespaces' : script)),
      ['pre-restore', ...around],
    );
    await tree.countsOn();
    // It is there: its number is taken.
    const again = await talk([{ type: 'RESTORE', opts }]);
    assert.deepEqual([again.answers[0]?.cr_errno, again.answers[0]?.restore?.pid], [17, -1]);
    assert.match(readFileSync(`${images('restore')}/restore.log`, 'utf8'), /^Error \(stasis\): /m);
    await tree.countsOn();
  });

  it('leaves a tree alone, or makes none, where the client does not agree', async () => {
    const tree = await Tree.start(bed);
    for (const script of ['pre-dump', 'post-dump']) {
      const opts = { images_dir_fd: images('refused'), pid: tree.pid, notify_scripts: true };
      const { answers, exitStatus } = await talk([{ type: 'DUMP', opts }], { refusing: [script] });
      assert.match(answers[0]!.cr_errmsg!, new RegExp(`did not agree to "${script}"`));
      assert.notEqual(exitStatus, 0);
      await tree.countsOn();
    }
    const opts = { images_dir_fd: images('images') };
    assert.equal((await talk([{ type: 'DUMP', opts: { ...opts, pid: tree.pid } }])).exitStatus, 0);
    await tree.isGone();
    const before = tree.output();
    for (const script of ['setup-namespaces', 'post-restore', 'pre-resume']) {
      const refused = await talk([{ type: 'RESTORE', opts: { ...opts, notify_scripts: true } }], {
        refusing: [script],
      });
      assert.equal(refused.answers[0]?.restore?.pid, -1);
      await waitFor('the tree to go', () => (processState(tree.pid) === undefined ? true : undefined));
      assert.equal(isAlive(tree.pid), false);
      assert.equal(tree.output(), before, 'it has run');
    }
    assert.equal((await talk([{ type: 'RESTORE', opts }])).exitStatus, 0);
    await tree.countsOn();
  });

  it('reads the configuration file that a runtime names, whose options win', async () => {
    const tree = await Tree.start(bed, { ownSession: false });
    const file = `${bed.directory}/runc.conf`;
    const opts = { images_dir_fd: images('images'), pid: tree.pid, config_file: file };
    writeFileSync(file, 'verbosity 4\nlazy-pages # not here\n');
    const [refused] = (await talk([{ type: 'DUMP', opts }])).answers;
    assert.equal(refused?.cr_errno, 56);
    assert.match(refused.cr_errmsg!, /^cannot use CRIU's configuration \S+: line 2: lazy-pages is not built/);
    await tree.countsOn();
    writeFileSync(file, 'shell-job\n');
    assert.equal((await talk([{ type: 'DUMP', opts }])).exitStatus, 0);
    await tree.isGone();
    const restore = { images_dir_fd: images('images'), shell_job: false };
    assert.match((await talk([{ type: 'RESTORE', opts: restore }])).answers[0]!.cr_errmsg!, /session/);
    const restored = await talk([{ type: 'RESTORE', opts: { ...restore, config_file: file } }]);
    assert.equal(restored.exitStatus, 0, restored.answers[0]?.cr_errmsg);
    await tree.countsOn();
  });
});

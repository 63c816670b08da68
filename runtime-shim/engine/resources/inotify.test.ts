import assert from 'node:assert/strict';
import type { WatchedFile } from '../../../nativecore/schema/messages.js';
import { fd_types, type file_entry } from '../../../oci-spec/images/messages.js';
import { Phase } from '../plan/builder.js';
import { FileFixture, objectionsOf, statx, stepsOf } from './file-fixture.js';

const anonymous = { mode: 0o600, inode: 9n, filesystemMagic: 0x09041934n };
const line = (wd: number, inode: number, mask: string): string =>
  `inotify wd:${wd.toString(16)} ino:${inode.toString(16)} sdev:fe00000 mask:${mask} ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0100000002000000\n`;

const found = (watch: number, path: string): WatchedFile => ({
  watch,
  path: { link: Buffer.from(path), stat: statx({}), pathMatches: true },
});

function watching(lines: readonly string[], watchedFiles: readonly WatchedFile[], more: object = {}): FileFixture {
  const fixture = new FileFixture();
  const file = fixture.open({
    link: 'anon_inode:inotify',
    statusFlags: 0o4000,
    stat: anonymous,
    fdinfo: `pos:\t0\n${lines.join('')}`,
    watchedFiles: [...watchedFiles],
    ...more,
  });
  fixture.task({ nsPid: 1, fds: { 3: file } });
  return fixture;
}

/** The watches of the plan, of the first task. */
const added = (fixture: FileFixture): string[] => stepsOf(fixture.compile(), 1, Phase.CREDENTIALS);

describe('inotify', () => {
  it('adds watches with their numbers, last of all, and never follows a link', () => {
    const fixture = watching(
      [line(10, 3, '80000002'), line(4, 2, '4000fc6'), line(1, 1, 'fff'), line(5, 4, '2')],
      [found(1, '/etc/app'), found(4, '/etc/app/conf'), found(10, '/x'), found(5, '/y')],
    );
    assert.deepEqual(added(fixture), [
      `inotify_add_watch 3 "/etc/app" ${0x12000fff}`,
      'ioctl 3 1074022656 4',
      `inotify_add_watch 3 "/etc/app/conf" ${0x16000fc6}`,
      `inotify_add_watch 3 "/y" ${0x12000002}`,
      'ioctl 3 1074022656 10',
      `inotify_add_watch 3 "/x" ${0x92000002}`,
    ]);
  });

  it('writes what CRIU reads: handle, path and mount', () => {
    const model = watching([line(1, 1, 'fff')], [found(1, '/etc/app')]);
    const entry = [...model.model(model.encode()).files.values()].find(({ type }) => type === fd_types.INOTIFY);
    const watch = entry?.ify?.wd[0];
    assert.deepEqual(
      [watch?.i_ino, watch?.s_dev, watch?.wd, watch?.mask, watch?.f_handle.path, watch?.f_handle.mnt_id],
      [1n, 0xfe00000, 1, 0xfff, '/etc/app', 20],
    );
    assert.deepEqual(watch?.f_handle.handle, [0x0000000200000001n, ...Array<bigint>(15).fill(0n)]);
  });

  it('says what is lost: unread events, and watches on files without a name', () => {
    const gone: WatchedFile = {
      watch: 1,
      path: { link: Buffer.alloc(0), stat: statx({ linkCount: 0 }), pathMatches: false },
    };
    const fixture = watching([line(1, 1, 'fff'), line(2, 2, 'fff')], [gone, found(2, '/b')], { unreadBytes: 32 });
    assert.deepEqual(
      fixture.encode().degradations.map(({ code }) => code),
      ['INOTIFY_WATCH_LOST', 'INOTIFY_EVENTS_LOST'],
    );
    assert.deepEqual(added(fixture), ['ioctl 3 1074022656 2', `inotify_add_watch 3 "/b" ${0x12000fff}`]);
  });

  it('refuses a watch whose path was not found, with what is known of it', () => {
    const objections = objectionsOf(watching([line(7, 0x1234, 'fff')], []).encode());
    assert.equal(objections.length, 1);
    assert.match(
      objections[0] ?? '',
      /^watch 7 of fd 3 of pid \d+ .*, an inotify instance, is on inode 4660 on device 254:0, for which no path was found/,
    );
  });

  it('refuses images whose watches are out of range, there twice, or without a path', () => {
    const fixture = watching([line(1, 1, 'fff')], [found(1, '/etc/app')]);
    const harmed = (wd: readonly number[], path: string | undefined): (() => FileFixture) => {
      const ctx = fixture.encode();
      const model = fixture.model(ctx);
      const files = new Map<number, file_entry>(model.files);
      for (const [id, entry] of files) {
        const watch = entry.ify?.wd[0];
        if (entry.ify === undefined || watch === undefined) continue;
        const handle = { ...watch.f_handle, path };
        const watches = wd.map((number) => ({ ...watch, wd: number, f_handle: handle }));
        files.set(id, { ...entry, ify: { ...entry.ify, wd: watches } });
      }
      return () => {
        const compiled = fixture.compile({}, { ...model, files });
        const [objection] = compiled.objections;
        if (objection !== undefined) throw objection;
        return fixture;
      };
    };
    assert.throws(harmed([0], '/a'), /watch 0 of inotify \d+ twice or out of range/);
    assert.throws(harmed([2, 2], '/a'), /watch 2 of inotify \d+ twice/);
    assert.throws(harmed([1], undefined), /watch 1 of inotify \d+ is on inode 1, whose path is not in the images/);
    assert.throws(harmed([1], '/a\0b'), /unusable path/);
  });

  it('names paths as a process with a root directory of its own does', () => {
    const fixture = new FileFixture();
    const file = fixture.open({
      link: 'anon_inode:inotify',
      stat: anonymous,
      fdinfo: line(1, 1, 'fff') + line(2, 2, 'fff'),
      watchedFiles: [found(1, '/jail/etc'), found(2, '/jail')],
    });
    fixture.task({ nsPid: 1, fds: { 3: file }, root: '/jail' });
    assert.deepEqual(added(fixture), [
      `inotify_add_watch 3 "/etc" ${0x12000fff}`,
      `inotify_add_watch 3 "/" ${0x12000fff}`,
    ]);
  });
});

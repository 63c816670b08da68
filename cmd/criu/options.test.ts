import assert from 'node:assert/strict';
import { directoriesOf, parseCommandLine } from './options.js';

const parse = (text: string): ReturnType<typeof parseCommandLine> => parseCommandLine(text.split(' '));

describe("CRIU's command line", () => {
  it('takes the spellings of getopt_long, before and after the action', () => {
    const want = { images_dir_fd: -1, pid: 17, leave_running: true, shell_job: true };
    for (const text of [
      'dump -t 17 -D /i -R -j -v4 -o x.log',
      '-t17 -D/i -Rj dump -vvvv -ox.log',
      'dump --tree=17 --images-dir=/i --leave-running --shell-job --verbosity=4 --log-file x.log',
    ]) {
      const { positionals, options, around } = parse(text);
      assert.deepEqual(positionals, ['dump']);
      assert.deepEqual(options, want);
      assert.deepEqual(directoriesOf(around, 'dump.log'), { imagePath: '/i', workPath: '/i', logName: 'x.log' });
    }
  });

  it('keeps lists in order, and takes a switch back', () => {
    const { options } = parse(
      'restore --external mnt[/a]:x --external dev[1/2]:y -M /b:z --inherit-fd fd[5]:pipe:[9] --track-mem --no-track-mem',
    );
    assert.deepEqual(options, {
      images_dir_fd: -1,
      external: ['mnt[/a]:x', 'dev[1/2]:y'],
      ext_mnt: [{ key: '/b', val: 'z' }],
      inherit_fd: [{ fd: 5, key: 'pipe:[9]' }],
      track_mem: false,
    });
  });

  it('puts the log where the work is, wherever it is said to be', () => {
    const of = (text: string): string => directoriesOf(parse(text).around, 'dump.log').logName;
    assert.equal(of('dump -D /i -W /w'), 'dump.log');
    assert.equal(of('dump -D /i -W /w -o /w/sub/x.log'), 'sub/x.log');
    assert.equal(of('dump -D /i -W /w -o /elsewhere/x.log'), '../elsewhere/x.log');
    assert.throws(() => of('dump -o -'), /cannot log to standard output/);
  });

  it('refuses by name what it does not know, and values that make no sense', () => {
    for (const [text, sentence] of [
      ['dump --action-script x', /cannot use --action-script: this option is not built yet/],
      ['dump -t nonsense', /cannot use --tree nonsense: it must be a whole number of at least 1/],
      ['dump -t', /cannot use -t: the option needs a value/],
      ['dump --shell-job=yes', /--shell-job takes no value/],
      ['dump --no-tree 5', /cannot use --no-tree/],
      ['dump --manage-cgroups=often', /there is no such mode/],
      ['restore --inherit-fd 5', /it is not fd\[N\]:KEY/],
      ['restore --empty-ns user', /only net is built/],
      ['restore -J net', /it is not NAMESPACE:PID or NAMESPACE:FILE/],
    ] as const)
      assert.throws(() => parse(text), sentence);
  });
});

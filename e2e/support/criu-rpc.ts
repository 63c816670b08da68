// A client of "criu swrk" that is nobody's but this test's: the messages are
// those of pycriu, whose schema is CRIU's own, so that both sides are not ours.
import { criuProgram } from './paths.js';
import { peers } from './peers.js';
import { mustRun } from './run.js';

export interface RpcAnswer {
  readonly type: string;
  readonly success: boolean;
  readonly cr_errno?: number;
  readonly cr_errmsg?: string;
  readonly features?: Readonly<Record<string, boolean>>;
  readonly version?: Readonly<Record<string, unknown>>;
  readonly restore?: { readonly pid: number };
  readonly dump?: { readonly restored: boolean };
}

export interface RpcTalk {
  /** One for each request, until the other side closed the socket. */
  readonly answers: readonly RpcAnswer[];
  /** Scripts that were told of, as "post-restore(1)" where a pid was given. */
  readonly scripts: readonly string[];
  readonly longestAnswerBytes: number;
  readonly exitStatus: number;
}

// Directories are named by path here and passed by the numbers of the client's descriptors, as clients do.
const client = `
import json, os, socket, subprocess, sys
import pycriu.rpc_pb2 as rpc
from google.protobuf import json_format

program, refused, requests = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(60)
swrk = subprocess.Popen([program, 'swrk', str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
theirs.close()
answers, scripts, longest = [], [], 0

def receive():
    global longest
    packet = ours.recv(1 << 16)
    longest = max(longest, len(packet))
    return packet

for request in requests:
    if isinstance(request, int):
        packet = bytes([8, request])
    else:
        options = request.get('opts', {})
        for name in ('images_dir_fd', 'work_dir_fd'):
            if isinstance(options.get(name), str):
                options[name] = os.open(options[name], os.O_RDONLY | os.O_DIRECTORY)
        packet = json_format.ParseDict(request, rpc.criu_req()).SerializeToString()
    try:
        ours.send(packet)
        packet = receive()
    except OSError:
        break
    while packet:
        answer = rpc.criu_resp()
        answer.ParseFromString(packet)
        if answer.type != rpc.NOTIFY:
            break
        script = answer.notify.script
        scripts.append('%s(%d)' % (script, answer.notify.pid) if answer.notify.HasField('pid') else script)
        ours.send(rpc.criu_req(type=rpc.NOTIFY, notify_success=script not in refused).SerializeToString())
        packet = receive()
    if not packet:
        break
    answers.append(json_format.MessageToDict(answer, preserving_proto_field_name=True))
ours.close()
print(json.dumps({'answers': answers, 'scripts': scripts, 'longestAnswerBytes': longest, 'exitStatus': swrk.wait(60)}))
`;

/**
 * Sends requests one after the other over one socket, and agrees to every script but those in `refusing`. A bare
 * number is a request of that type, known to the schema or not.
 */
export async function talk(
  requests: readonly (object | number)[],
  { program = criuProgram, refusing = [] }: { readonly program?: string; readonly refusing?: readonly string[] } = {},
): Promise<RpcTalk> {
  const args = ['-c', client, program, JSON.stringify(refusing), JSON.stringify(requests)];
  const { stdout } = await mustRun('/usr/bin/python3', args, { env: peers.crit([]).env });
  return JSON.parse(stdout) as RpcTalk;
}

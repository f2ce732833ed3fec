// Package plugins is what the example plugins in Go share: meeting the monitor,
// and fetching descriptors.
package plugins

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"syscall"

	"capnproto.org/go/capnp/v3"
	"capnproto.org/go/capnp/v3/rpc"

	"podinit.example/plugins/plugin"
)

// Decider gives verdicts.
type Decider interface {
	Decide(ctx context.Context, call *Call, verdict plugin.Verdict) error
}

// Observer hears of verdicts about a pod's calls.
type Observer interface {
	Observe(pod string, records plugin.Record_List, lost uint64) error
}

// Call is a system call that waits for a verdict.
type Call struct {
	plugin.Notification
	target    plugin.Target
	exchange  string
	Syscall   string
	Arguments [6]uint64
}

// Served is a plugin as the monitor sees it.
type Served struct {
	Decider
	Observer
	mutex    sync.Mutex
	sessions map[uint64]plugin.Target
	exchange string
	pod      string
}

// Synchronise hears of all sessions.
func (s *Served) Synchronise(_ context.Context, call plugin.SeccompPlugin_synchronise) error {
	host, err := call.Args().Host()
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.exchange, err = host.DescriptorSocket(); err != nil {
		return err
	}
	if s.pod, err = host.PodId(); err != nil {
		return err
	}
	s.sessions = map[uint64]plugin.Target{}
	sessions, err := call.Args().Sessions()
	if err != nil {
		return err
	}
	for i := range sessions.Len() {
		s.sessions[sessions.At(i).Id()] = sessions.At(i).Target().AddRef()
	}
	return nil
}

// SessionOpened hears of one.
func (s *Served) SessionOpened(_ context.Context, call plugin.SeccompPlugin_sessionOpened) error {
	session, err := call.Args().Session()
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.sessions[session.Id()] = session.Target().AddRef()
	return nil
}

// SessionClosed hears that one is over.
func (s *Served) SessionClosed(_ context.Context, call plugin.SeccompPlugin_sessionClosed) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	id := call.Args().Session()
	s.sessions[id].Release()
	delete(s.sessions, id)
	return nil
}

// Decide answers a batch.
func (s *Served) Decide(ctx context.Context, call plugin.SeccompPlugin_decide) error {
	// A slow verdict must not hold up the next call.
	call.Go()
	notifications, err := call.Args().Notifications()
	if err != nil {
		return err
	}
	results, err := call.AllocResults()
	if err != nil {
		return err
	}
	verdicts, err := results.NewVerdicts(int32(notifications.Len()))
	if err != nil {
		return err
	}
	for i := range notifications.Len() {
		one, err := s.call(notifications.At(i))
		if err != nil {
			return err
		}
		if err := s.Decider.Decide(ctx, one, verdicts.At(i)); err != nil {
			return err
		}
	}
	return nil
}

// Observe passes records on.
func (s *Served) Observe(_ context.Context, call plugin.SeccompPlugin_observe) error {
	records, err := call.Args().Records()
	if err != nil {
		return err
	}
	s.mutex.Lock()
	pod := s.pod
	s.mutex.Unlock()
	return s.Observer.Observe(pod, records, call.Args().Lost())
}

func (s *Served) call(notification plugin.Notification) (*Call, error) {
	s.mutex.Lock()
	call := &Call{Notification: notification, target: s.sessions[notification.Session()], exchange: s.exchange}
	s.mutex.Unlock()
	arguments, err := notification.Arguments()
	if err != nil {
		return nil, err
	}
	for i := range min(arguments.Len(), len(call.Arguments)) {
		call.Arguments[i] = arguments.At(i)
	}
	call.Syscall, err = notification.Name()
	return call, err
}

// Decoded is what an argument pointed to, whole.
func (c *Call) Decoded(argument uint8) (plugin.Decoded, bool) {
	list, err := c.Notification.Decoded()
	if err != nil {
		return plugin.Decoded{}, false
	}
	for i := range list.Len() {
		if decoded := list.At(i); decoded.Argument() == argument && !decoded.Cut() {
			return decoded, true
		}
	}
	return plugin.Decoded{}, false
}

// Check says whether the process still waits.
func (c *Call) Check(ctx context.Context) bool {
	future, release := c.target.Check(ctx, func(p plugin.Target_check_Params) error {
		p.SetId(c.Id())
		return nil
	})
	defer release()
	answer, err := future.Struct()
	return err == nil && answer.Open()
}

// Duplicate is a copy of the process's descriptor.
func (c *Call) Duplicate(ctx context.Context, descriptor int32) (int, error) {
	future, release := c.target.Duplicate(ctx, func(p plugin.Target_duplicate_Params) error {
		p.SetId(c.Id())
		p.SetDescriptor(descriptor)
		return nil
	})
	defer release()
	return fetchAnswer(c.exchange, future)
}

// Open is the process's root or working directory.
func (c *Call) Open(ctx context.Context, place plugin.Target_Place) (int, error) {
	future, release := c.target.Open(ctx, func(p plugin.Target_open_Params) error {
		p.SetId(c.Id())
		p.SetPlace(place)
		return nil
	})
	defer release()
	return fetchAnswer(c.exchange, future)
}

// Owner is the effective user and group of the calling thread.
func (c *Call) Owner(ctx context.Context) (int, int, error) {
	future, release := c.target.Credentials(ctx, func(p plugin.Target_credentials_Params) error {
		p.SetId(c.Id())
		return nil
	})
	defer release()
	answer, err := future.Struct()
	if err != nil {
		return 0, 0, err
	}
	credentials, err := answer.Credentials()
	return int(credentials.Uid()), int(credentials.Gid()), err
}

// fetchAnswer gets the descriptor whose ticket is the answer to a call.
func fetchAnswer[A interface{ Ticket() ([]byte, error) }](path string, future interface{ Struct() (A, error) }) (int, error) {
	answer, err := future.Struct()
	if err != nil {
		return -1, err
	}
	ticket, err := answer.Ticket()
	if err != nil {
		return -1, err
	}
	return fetch(path, ticket)
}

// fetch gets the descriptor that a ticket stands for. It is no os.File: that would
// change whether the process's own calls block.
func fetch(path string, ticket []byte) (int, error) {
	exchange, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return -1, err
	}
	defer exchange.Close()
	if _, err := exchange.Write(append([]byte("t"), ticket...)); err != nil {
		return -1, err
	}
	said, control := make([]byte, 256), make([]byte, syscall.CmsgSpace(4))
	n, controls, _, _, err := exchange.ReadMsgUnix(said, control)
	if err != nil {
		return -1, err
	}
	if n != 1 || said[0] != 'p' {
		return -1, fmt.Errorf("no descriptor: %s", said[1:n])
	}
	messages, err := syscall.ParseSocketControlMessage(control[:controls])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("no descriptor: %w", err)
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(descriptors) != 1 {
		return -1, fmt.Errorf("no descriptor: %w", err)
	}
	syscall.CloseOnExec(descriptors[0])
	return descriptors[0], nil
}

// Request is what a plugin asks for.
type Request func(plugin.RegistrationRequest) error

// Syscalls selects system calls by name.
func Syscalls(request plugin.RegistrationRequest, names ...string) error {
	selector, err := request.NewSelector()
	if err != nil {
		return err
	}
	list, err := selector.NewSyscalls(int32(len(names)))
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := list.Set(i, name); err != nil {
			return err
		}
	}
	return nil
}

func register(ctx context.Context, host plugin.PluginHost, request Request, served *Served) (plugin.Registration, error) {
	future, release := host.Register(ctx, func(p plugin.PluginHost_register_Params) error {
		asked, err := p.NewRequest()
		if err != nil {
			return err
		}
		if err := request(asked); err != nil {
			return err
		}
		return p.SetPlugin(plugin.SeccompPlugin_ServerToClient(served))
	})
	defer release()
	answer, err := future.Struct()
	if err != nil {
		return plugin.Registration{}, err
	}
	return answer.Registration().AddRef(), nil
}

// Arguments are the program's own, the socket and what comes after it.
func Arguments(usage string) []string {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage:", usage)
		os.Exit(2)
	}
	return os.Args[1:]
}

// End ends the program with what its plugin ended with.
func End(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// DialIn registers with one pod, and stays until it ends.
func DialIn(path string, request Request, served *Served) error {
	stream, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	connection := rpc.NewConn(rpc.NewStreamTransport(stream), nil)
	defer connection.Close()
	ctx := context.Background()
	registration, err := register(ctx, plugin.PluginHost(connection.Bootstrap(ctx)), request, served)
	if err != nil {
		return err
	}
	defer registration.Release()
	fmt.Println("registered")
	<-connection.Done()
	return nil
}

type program struct {
	request Request
	served  func() *Served
	kept    []plugin.Registration
}

func (p *program) Attach(ctx context.Context, call plugin.PluginProgram_attach) error {
	host := call.Args().Host()
	// The monitor calls synchronise before it answers.
	call.Go()
	registration, err := register(ctx, host, p.request, p.served())
	p.kept = append(p.kept, registration)
	return err
}

// Listen registers with every pod whose monitor connects.
func Listen(path string, request Request, served func() *Served) error {
	os.Remove(path)
	syscall.Umask(0o177)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	for {
		stream, err := listener.Accept()
		if err != nil {
			return err
		}
		bootstrap := plugin.PluginProgram_ServerToClient(&program{request: request, served: served})
		rpc.NewConn(rpc.NewStreamTransport(stream), &rpc.Options{BootstrapClient: capnp.Client(bootstrap)})
	}
}

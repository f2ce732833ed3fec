// Lets containers connect to the addresses of a list, and to nothing else.
//
//	connect /run/podinit/pods/<pod>/plugins.sock 10.0.0.1:53 [::1]:443
//
// The profile must notify of connect. The plugin makes the connection itself, with
// the address that it judged, on a copy of the process's socket: were the call
// continued, another thread could put another address in place.
package main

import (
	"context"
	"errors"
	"log"
	"net/netip"

	"golang.org/x/sys/unix"

	plugins "podinit.example/plugins"
	"podinit.example/plugins/plugin"
)

type connect map[netip.AddrPort]bool

func (allowed connect) Decide(ctx context.Context, call *plugins.Call, verdict plugin.Verdict) error {
	where, ok := address(call)
	if !ok || !allowed[where] {
		verdict.SetErrno(uint16(unix.EACCES))
		return nil
	}
	socket, err := call.Duplicate(ctx, int32(call.Arguments[0]))
	if err != nil {
		verdict.SetErrno(uint16(unix.EBADF))
		return nil
	}
	defer unix.Close(socket)
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(where.Port()), Addr: where.Addr().As16()}
	if where.Addr().Is4() {
		to = &unix.SockaddrInet4{Port: int(where.Port()), Addr: where.Addr().As4()}
	}
	// It can take minutes; every verdict has a goroutine of its own.
	var errno unix.Errno
	switch err := unix.Connect(socket, to); {
	case err == nil:
		verdict.SetReturnValue(0)
	case errors.As(err, &errno):
		verdict.SetErrno(uint16(errno))
	default:
		return err
	}
	return nil
}

func address(call *plugins.Call) (netip.AddrPort, bool) {
	none := netip.AddrPort{}
	decoded, ok := call.Decoded(1)
	if !ok || decoded.Which() != plugin.Decoded_Which_address {
		return none, false
	}
	socket, err := decoded.Address()
	if err != nil {
		return none, false
	}
	var internet plugin.SocketAddress_Internet
	switch socket.Which() {
	case plugin.SocketAddress_Which_inet:
		internet, err = socket.Inet()
	case plugin.SocketAddress_Which_inet6:
		internet, err = socket.Inet6()
	default:
		return none, false
	}
	if err != nil {
		return none, false
	}
	bytes, err := internet.Address()
	ip, ok := netip.AddrFromSlice(bytes)
	return netip.AddrPortFrom(ip, internet.Port()), ok && err == nil
}

func main() {
	allowed := connect{}
	arguments := plugins.Arguments("connect SOCKET ADDRESS:PORT...")
	for _, text := range arguments[1:] {
		where, err := netip.ParseAddrPort(text)
		if err != nil {
			log.Fatal(err)
		}
		allowed[where] = true
	}
	request := func(request plugin.RegistrationRequest) error {
		request.SetDecode(true)
		request.SetDeadlineMs(180_000)
		return errors.Join(request.SetName("connect-go"), plugins.Syscalls(request, "connect"))
	}
	plugins.End(plugins.DialIn(arguments[0], request, &plugins.Served{Decider: allowed}))
}

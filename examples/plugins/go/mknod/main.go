// Makes harmless device nodes for containers that may not make any.
//
//	mknod /run/podinit/pods/<pod>/plugins.sock
//
// The profile must notify of mknod and mknodat. A node that is not in the list is
// refused, and so is one in a directory that is neither the process's own nor open to
// everybody, unless root asks; what is no device is left to the kernel, which the mode,
// a register, decides.
package main

import (
	"context"
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	plugins "podinit.example/plugins"
	"podinit.example/plugins/plugin"
)

// Major and minor of null, zero, full, random and urandom.
var harmless = map[[2]uint32]bool{{1, 3}: true, {1, 5}: true, {1, 7}: true, {1, 8}: true, {1, 9}: true}

type mknod struct{}

func (mknod) Decide(ctx context.Context, call *plugins.Call, verdict plugin.Verdict) error {
	// mknodat has a directory before the other arguments.
	first := 0
	if call.Syscall == "mknodat" {
		first = 1
	}
	mode, device := uint32(call.Arguments[first+1]&0xffff), call.Arguments[first+2]
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK:
		verdict.SetErrno(uint16(unix.EPERM))
		return nil
	case unix.S_IFCHR:
	default:
		verdict.SetContinue()
		return nil
	}
	if !harmless[[2]uint32{unix.Major(device), unix.Minor(device)}] {
		verdict.SetErrno(uint16(unix.EPERM))
		return nil
	}
	var errno unix.Errno
	switch err := create(ctx, call, first, mode, device); {
	case err == nil:
		verdict.SetReturnValue(0)
	case errors.As(err, &errno):
		verdict.SetErrno(uint16(errno))
	default:
		verdict.SetErrno(uint16(unix.EPERM))
	}
	return nil
}

// create makes the node at the path that was copied, whatever the process does to
// its memory meanwhile.
func create(ctx context.Context, call *plugins.Call, first int, mode uint32, device uint64) error {
	decoded, ok := call.Decoded(uint8(first))
	if !ok || decoded.Which() != plugin.Decoded_Which_text {
		return unix.EFAULT
	}
	text, err := decoded.Text()
	if err != nil {
		return err
	}
	// Nowhere out of the container.
	name, how := string(text), uint64(unix.RESOLVE_BENEATH)
	var base int
	switch descriptor := int32(call.Arguments[0]); {
	case strings.HasPrefix(name, "/"):
		base, err = call.Open(ctx, plugin.Target_Place_root)
		how = unix.RESOLVE_IN_ROOT
	case first == 1 && descriptor >= 0:
		base, err = call.Duplicate(ctx, descriptor)
	default:
		base, err = call.Open(ctx, plugin.Target_Place_workingDirectory)
	}
	if err != nil {
		return err
	}
	defer unix.Close(base)
	parent, err := unix.Openat2(base, path.Dir(name), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: how | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	uid, gid, err := call.Owner(ctx)
	if err != nil {
		return err
	}
	// What was opened is the process's own if its call still waits.
	if !call.Check(ctx) {
		return unix.EINTR
	}
	// The plugin itself may make nodes anywhere.
	var place unix.Stat_t
	if err := unix.Fstat(parent, &place); err != nil {
		return err
	}
	if uid != 0 && uint32(uid) != place.Uid && place.Mode&0o002 == 0 {
		return unix.EACCES
	}
	if err := unix.Mknodat(parent, path.Base(name), mode, int(device)); err != nil {
		return err
	}
	// By now the name can be another file's, even one from outside, mounted there: what is given
	// away is the node, or nothing. Nothing is removed either: by its name it could be that file.
	node, err := unix.Openat2(parent, path.Base(name), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	defer unix.Close(node)
	var found unix.Stat_t
	if err := unix.Fstat(node, &found); err != nil {
		return err
	}
	if found.Mode&unix.S_IFMT != unix.S_IFCHR || found.Rdev != device {
		return unix.EPERM
	}
	return unix.Fchownat(node, "", uid, gid, unix.AT_EMPTY_PATH)
}

func main() {
	request := func(request plugin.RegistrationRequest) error {
		request.SetAllowContinue(true)
		request.SetDecode(true)
		return errors.Join(request.SetName("mknod-go"), plugins.Syscalls(request, "mknod", "mknodat"))
	}
	arguments := plugins.Arguments("mknod SOCKET")
	plugins.End(plugins.DialIn(arguments[0], request, &plugins.Served{Decider: mknod{}}))
}

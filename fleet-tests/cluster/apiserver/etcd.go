package main

import (
	"errors"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// startPatience is how long etcd may take to lead its cluster of one, on a busy machine.
const startPatience = 2 * time.Minute

// store is an etcd that only this process can reach: it listens on sockets in its folder.
type store struct {
	*embed.Etcd
	endpoint string
}

// startEtcd starts it with its files and sockets in the current folder: the path of a socket may not
// be long.
func startEtcd() (*store, error) {
	const clients, peers = "etcd.sock", "peer.sock"
	config := embed.NewConfig()
	config.Dir = "etcd"
	config.LogLevel = "warn"
	config.EnableGRPCGateway = false
	// Without it, a line for every request.
	config.WarningUnaryRequestDuration = time.Second
	// Who kills this process loses nothing: only a machine that loses power would.
	config.UnsafeNoFsync = true
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Host: clients}}
	config.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: peers}}
	// Addresses for others, of whom there are none: etcd wants a host and a port in them.
	nobody := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	config.AdvertiseClientUrls = []url.URL{nobody}
	config.AdvertisePeerUrls = []url.URL{nobody}
	config.InitialCluster = config.Name + "=" + nobody.String()

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return &store{Etcd: etcd, endpoint: "unix://" + clients}, nil
	case err := <-etcd.Err():
		etcd.Close()
		return nil, err
	case <-time.After(startPatience):
		etcd.Close()
		return nil, errors.New("it is not ready after " + startPatience.String())
	}
}

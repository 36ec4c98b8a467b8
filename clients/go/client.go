package pseudoword

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	generationv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/generation/v1"
	registryv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/registry/v1"
	trainerv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/trainer/v1"
)

const maxMessageBytes = 16 << 20

// All retries are safe: every unary call either only reads, or has a request id, so a repeat changes nothing.
const serviceConfig = `{
  "methodConfig": [{
    "name": [{}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.2s",
      "maxBackoff": "3s",
      "backoffMultiplier": 2.5,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "loadBalancingConfig": [{"round_robin": {}}]
}`

// Options are the addresses of the three servers and the identity of the caller.
type Options struct {
	// Registry, Trainer and Generation are addresses, HOST:PORT. Empty: 127.0.0.1:7361, :7362 and :7363.
	Registry, Trainer, Generation string
	// Token is a bearer token; empty: none. Without CA it is allowed for loopback addresses only.
	Token string
	// CA is the name of a PEM file of certificate authorities; if set, TLS is used.
	CA string
	// Tenant is the id of the caller's tenant. Empty: "default".
	Tenant string
}

// Client is a connection to the three servers on behalf of one tenant. It is safe for concurrent use.
type Client struct {
	// Registry, Trainer and Generation are the generated clients. FromCall converts their errors to *Error.
	Registry   registryv1.RegistryServiceClient
	Trainer    trainerv1.TrainerServiceClient
	Generation generationv1.GenerationServiceClient

	tenant      string
	connections []*grpc.ClientConn
}

// New makes a client. It returns an error for an invalid option. A connection is opened on first use, so the servers may
// start later.
func New(options Options) (*Client, error) {
	if options.Tenant == "" {
		options.Tenant = "default"
	}
	client := &Client{tenant: "tenants/" + options.Tenant}
	addresses := [...]string{
		orElse(options.Registry, "127.0.0.1:7361"),
		orElse(options.Trainer, "127.0.0.1:7362"),
		orElse(options.Generation, "127.0.0.1:7363"),
	}
	for _, address := range addresses {
		connection, err := connect(address, options)
		if err != nil {
			_ = client.Close()
			return nil, err
		}
		client.connections = append(client.connections, connection)
	}
	client.Registry = registryv1.NewRegistryServiceClient(client.connections[0])
	client.Trainer = trainerv1.NewTrainerServiceClient(client.connections[1])
	client.Generation = generationv1.NewGenerationServiceClient(client.connections[2])
	return client, nil
}

// Close closes all connections; calls in progress fail.
func (c *Client) Close() error {
	var failures []error
	for _, connection := range c.connections {
		failures = append(failures, connection.Close())
	}
	return errors.Join(failures...)
}

func connect(address string, options Options) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if options.CA != "" {
		pem, err := os.ReadFile(options.CA)
		if err != nil {
			return nil, fmt.Errorf("pseudoword: certificate authorities: %w", err)
		}
		authorities := x509.NewCertPool()
		if !authorities.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("pseudoword: %s contains no certificate", options.CA)
		}
		transport = credentials.NewTLS(&tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12})
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes),
		),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
	if isLocal(address) {
		dial = append(dial, grpc.WithNoProxy())
	}
	if options.Token != "" {
		if options.CA == "" && !isLoopback(address) {
			return nil, fmt.Errorf(
				"pseudoword: a token is not sent to %s without TLS: set Options.CA to the server's certificate authority",
				address,
			)
		}
		dial = append(dial, grpc.WithPerRPCCredentials(bearer{token: options.Token, secure: options.CA != ""}))
	}
	return grpc.NewClient(address, dial...)
}

// bearer adds the token to every call.
type bearer struct {
	token  string
	secure bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.secure }

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// isLocal tells whether no proxy leads to an address: loopback, a socket, and names of a cluster or a private network,
// which are names without a dot or with an ending that no public name has.
func isLocal(address string) bool {
	if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "unix-abstract:") {
		return true
	}
	address = strings.TrimPrefix(strings.TrimPrefix(address, "dns:///"), "passthrough:///")
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if isLoopback(address) || !strings.ContainsAny(host, ".:") {
		return true
	}
	for _, ending := range []string{".svc", ".local", ".localhost", ".internal"} {
		if strings.HasSuffix(host, ending) {
			return true
		}
	}
	return false
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
